// Images of files: .npy of prepared images or of pixels, .ppm and .pgm pictures of the right size.
#pragma once

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <variant>
#include <vector>

#include "early_exit.hpp"

namespace classify {

/// Images of one file, (count, C, H, W): prepared ones, or pixels.
struct Images {
  std::variant<std::vector<float>, std::vector<std::uint8_t>> values;
  std::size_t count = 0;
  bool is_one = true;  // the file has no axis of images
};

class ImageReader {
 public:
  explicit ImageReader(const early_exit::Manifest& manifest)
      : manifest_(manifest), shape_(manifest.image().shape) {}

  static bool knows(const std::filesystem::path& path) {
    const std::string suffix = path.extension().string();
    return suffix == ".npy" || suffix == ".ppm" || suffix == ".pgm";
  }

  /// UserInputError: the file cannot be read, or holds no such images as the network takes.
  Images read(const std::filesystem::path& path) const {
    std::ifstream file(path, std::ios::binary);
    if (!file) refuse(path, "cannot be opened; check the path and its permissions");
    return path.extension() == ".npy" ? array(path, file) : picture(path, file);
  }

 private:
  static constexpr std::size_t kMaxBytes = std::size_t{4} << 30;  // of one file

  [[noreturn]] static void refuse(const std::filesystem::path& path, const std::string& why) {
    throw early_exit::UserInputError("image " + path.string() + " " + why);
  }

  std::string sides() const {
    std::string found;
    for (const std::int64_t side : shape_) {
      found += (found.empty() ? "" : ", ") + std::to_string(side);
    }
    return found;
  }

  /// The sizes in the header's tuple, such as "(2, 3, 8, 8)".
  static std::vector<std::int64_t> sizes_of(const std::string& header) {
    std::vector<std::int64_t> sizes;
    const std::size_t key = header.find("'shape': (");
    const std::size_t end = header.find(')', key == std::string::npos ? header.size() : key);
    if (end == std::string::npos) return sizes;
    std::int64_t size = -1;
    for (std::size_t i = key + 10; i <= end; ++i) {
      if (header[i] >= '0' && header[i] <= '9' && size < (std::int64_t{1} << 40)) {
        size = 10 * std::max<std::int64_t>(size, 0) + (header[i] - '0');
      } else if (size >= 0 && header[i] != ' ') {
        sizes.push_back(size);
        size = -1;
      }
    }
    return sizes;
  }

  Images array(const std::filesystem::path& path, std::ifstream& file) const {
    char start[10] = {};
    file.read(start, sizeof start);
    const bool is_array = file && std::string(start, 8) == std::string("\x93NUMPY\x01\x00", 8);
    const std::size_t length = static_cast<unsigned char>(start[8]) |
                               std::size_t{static_cast<unsigned char>(start[9])} << 8;
    std::string header(length, '\0');
    file.read(header.data(), static_cast<std::streamsize>(length));
    const auto has = [&header](const char* text) { return header.find(text) != header.npos; };
    if (!is_array || !file || !has("'fortran_order': False")) {
      refuse(path, "cannot be read; expected a file that numpy.save wrote, in C's order");
    }
    std::vector<std::int64_t> sizes = sizes_of(header);
    Images images;
    images.is_one = sizes == shape_;
    images.count = 1;
    if (!images.is_one && sizes.size() == shape_.size() + 1 && sizes[0] > 0) {
      images.count = static_cast<std::size_t>(sizes[0]);
      sizes.erase(sizes.begin());
    }
    const bool is_pixels = has("'|u1'"), is_float = has("'<f4'");
    if (sizes != shape_ || !(is_float || (is_pixels && manifest_.preprocessing))) {
      const std::string kinds = manifest_.preprocessing ? "uint8 or float32" : "float32";
      refuse(path, "holds something else than " + kinds + " of shape (" + sides() + ") or (N, " +
                       sides() + ")");
    }
    if (is_pixels) {
      images.values = content<std::uint8_t>(path, file, images.count);
    } else {
      images.values = content<float>(path, file, images.count);
    }
    return images;
  }

  template <typename Value>
  std::vector<Value> content(const std::filesystem::path& path, std::ifstream& file,
                             std::size_t count) const {
    const std::size_t elements = manifest_.image().elements();
    if (count > kMaxBytes / sizeof(Value) / elements) {
      refuse(path, "is too large; give it in parts");
    }
    const std::uintmax_t expected =
        static_cast<std::uintmax_t>(file.tellg()) + count * elements * sizeof(Value);
    if (std::filesystem::file_size(path) != expected) {
      refuse(path, "holds another number of bytes than its header says; give it whole");
    }
    std::vector<Value> values(count * elements);
    file.read(reinterpret_cast<char*>(values.data()),
              static_cast<std::streamsize>(values.size() * sizeof(Value)));
    if (!file) refuse(path, "was cut off while it was read; give it whole");
    return values;
  }

  /// A whole number of a picture's header, behind spaces and comments.
  static std::int64_t header_number(std::ifstream& file) {
    while (true) {
      file >> std::ws;
      if (file.peek() != '#') break;
      std::string comment;
      std::getline(file, comment);
    }
    std::int64_t number = -1;
    file >> number;
    return number;
  }

  Images picture(const std::filesystem::path& path, std::ifstream& file) const {
    if (!manifest_.preprocessing) {
      refuse(path, "is a picture, and the bundle takes prepared images");
    }
    if (!manifest_.preprocessing->leaves_its_size()) {
      refuse(path, "would be resized first, which only Python does; give prepared images, float32 "
                   "in .npy files");
    }
    std::string magic(2, '\0');
    file.read(magic.data(), 2);
    const std::int64_t channels = magic == "P6" ? 3 : magic == "P5" ? 1 : 0;
    const std::int64_t width = header_number(file), height = header_number(file);
    const std::int64_t largest = header_number(file);
    file.get();  // one space, then the pixels
    if (!file || channels == 0 || largest != 255) {
      refuse(path, "cannot be read; expected a binary PPM or PGM picture of 255 levels");
    }
    if (std::vector<std::int64_t>{channels, height, width} != shape_) {
      refuse(path, "is " + std::to_string(width) + " by " + std::to_string(height) + " pixels of " +
                       std::to_string(channels) + " channels; expected (" + sides() + ")");
    }
    const std::vector<std::uint8_t> interleaved = content<std::uint8_t>(path, file, 1);
    std::vector<std::uint8_t> pixels(interleaved.size());
    const std::size_t depth = static_cast<std::size_t>(channels), area = pixels.size() / depth;
    for (std::size_t i = 0; i < pixels.size(); ++i) {
      pixels[i % depth * area + i / depth] = interleaved[i];
    }
    return {std::move(pixels), 1, true};
  }

  const early_exit::Manifest& manifest_;
  std::vector<std::int64_t> shape_;
};

}  // namespace classify
