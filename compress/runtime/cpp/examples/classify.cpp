// Classifies images with a bundle, one JSON object a line, as `python -m compress.dispatch --json`.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <limits>
#include <locale>
#include <sstream>

#include "images.hpp"

namespace {

constexpr char kUsage[] =
    R"(usage: classify BUNDLE IMAGES... [options]

IMAGES are folders or files: .npy with prepared images, float32 (C, H, W) or (N, C, H, W), or with
pixels, uint8, at the size that the network takes; .ppm and .pgm pictures of that size.

  --thresholds T        leave at gate >= T: one for all exits, or one for each as in 0.9,0.8
  --batch N             images at a time (1)
  --threads N           processor threads of ONNX Runtime (as many as it likes)
  --library PATH        of libonnxruntime.so (where the system looks)
  --first-call-seconds S  that ONNX Runtime may take to open the bundle and to run it once (60)
  --times               also tell the milliseconds in each segment
  --logits              also tell the logits
)";

struct Arguments {
  std::filesystem::path bundle;
  std::vector<std::filesystem::path> images;
  early_exit::Options options;
  std::size_t batch = 1;
  bool times = false, logits = false;
};

/// UserInputError: a text is no number, or one with something behind it.
double number_of(const std::string& name, const std::string& text) {
  std::istringstream stream(text);
  stream.imbue(std::locale::classic());
  double value = 0;
  if (!(stream >> value) || !(stream >> std::ws).eof()) {
    throw early_exit::UserInputError(name + " is '" + text + "'; expected a number");
  }
  return value;
}

int count_of(const std::string& name, const std::string& text) {
  constexpr double most = 4096;
  const double value = number_of(name, text);
  if (!(value >= 1 && value <= most) || value != std::floor(value)) {
    throw early_exit::UserInputError(name + " is " + text +
                                     "; expected a whole number from 1 to 4096");
  }
  return static_cast<int>(value);
}

std::vector<double> numbers_of(const std::string& name, const std::string& text) {
  std::vector<double> found;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) found.push_back(number_of(name, part));
  if (found.empty()) number_of(name, text);  // which says what was expected
  return found;
}

void take_option(const std::string& name, const std::string& value, Arguments& found) {
  if (name == "--thresholds") {
    found.options.thresholds = numbers_of(name, value);
  } else if (name == "--batch") {
    found.batch = static_cast<std::size_t>(count_of(name, value));
  } else if (name == "--threads") {
    found.options.threads = count_of(name, value);
  } else if (name == "--library") {
    found.options.library = value;
  } else if (name == "--first-call-seconds") {
    found.options.first_call_seconds = number_of(name, value);
  } else {
    throw std::invalid_argument("there is no option " + name);
  }
}

/// std::invalid_argument: they are not used as they must be.
Arguments parsed(const std::vector<std::string>& texts) {
  Arguments found;
  std::vector<std::filesystem::path> paths;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    if (texts[i] == "--times") {
      found.times = true;
    } else if (texts[i] == "--logits") {
      found.logits = true;
    } else if (texts[i].rfind("--", 0) != 0) {
      paths.emplace_back(texts[i]);
    } else if (i + 1 == texts.size()) {
      throw std::invalid_argument(texts[i] + " has no value");
    } else {
      take_option(texts[i], texts[i + 1], found);
      ++i;
    }
  }
  if (paths.size() < 2) throw std::invalid_argument("a bundle and at least one image are needed");
  found.bundle = paths.front();
  found.images.assign(paths.begin() + 1, paths.end());
  return found;
}

/// Files, and of folders what they hold at any depth, in order.
std::vector<std::filesystem::path> files_of(const std::vector<std::filesystem::path>& paths) {
  namespace fs = std::filesystem;
  std::vector<fs::path> found;
  for (const fs::path& path : paths) {
    if (!fs::is_directory(path)) {
      found.push_back(path);
      continue;
    }
    const std::size_t before = found.size();
    for (const fs::directory_entry& entry : fs::recursive_directory_iterator(path)) {
      if (entry.is_regular_file() && classify::ImageReader::knows(entry.path())) {
        found.push_back(entry.path());
      }
    }
    std::sort(found.begin() + static_cast<std::ptrdiff_t>(before), found.end());
    if (found.size() == before) {
      throw early_exit::UserInputError("folder " + path.string() +
                                       " holds no image; expected files that end with .npy, .ppm, "
                                       ".pgm");
    }
  }
  return found;
}

std::string json_text(const std::string& text) {
  std::ostringstream found;
  found << '"';
  for (const char byte : text) {
    const auto code = static_cast<unsigned char>(byte);
    if (byte == '"' || byte == '\\') {
      found << '\\' << byte;
    } else if (code < 0x20 || code == 0x7F) {
      constexpr char hex[] = "0123456789abcdef";
      found << "\\u00" << hex[code >> 4] << hex[code & 0xF];
    } else {
      found << byte;
    }
  }
  return found.str() + '"';
}

/// A number of JSON, which has none that are not finite.
std::string json_number(double value) {
  if (!std::isfinite(value)) return "null";
  std::ostringstream found;
  found.imbue(std::locale::classic());
  found.precision(std::numeric_limits<double>::max_digits10);
  found << value;
  return found.str();
}

template <typename Values>
std::string json_list(const Values& values) {
  std::string found;
  for (const auto value : values) found += (found.empty() ? "" : ", ") + json_number(value);
  return "[" + found + "]";
}

/// Softmax of the logits at the place of their largest.
double confidence_of(const std::vector<double>& logits, double largest) {
  double total = 0;
  for (const double each : logits) total += std::exp(each - largest);
  return 1 / total;
}

class Classifier {
 public:
  explicit Classifier(const Arguments& arguments)
      : arguments_(arguments),
        dispatcher_(arguments.bundle, arguments.options),
        reader_(dispatcher_.manifest()),
        exits_(dispatcher_.manifest().segments.size()) {
    const early_exit::Manifest& manifest = dispatcher_.manifest();
    if (manifest.classes.empty()) {
      throw early_exit::UserInputError("bundle " + arguments.bundle.string() +
                                       " has no classes; expected a classifier, so call "
                                       "early_exit::Dispatcher, whose run returns its outputs");
    }
    if (arguments.batch > dispatcher_.max_batch()) {
      throw early_exit::UserInputError(
          "--batch is " + std::to_string(arguments.batch) + "; the bundle takes at most " +
          std::to_string(dispatcher_.max_batch()));
    }
  }

  void take(const std::filesystem::path& path) {
    try {
      const classify::Images images = reader_.read(path);
      for (std::size_t start = 0; start < images.count; start += arguments_.batch) {
        run(path, images, start, std::min(arguments_.batch, images.count - start));
      }
    } catch (const early_exit::UserInputError& error) {  // does not stop the others
      tell_error(path.string(), error.what());
    }
  }

  /// Print the summary; return the exit code.
  int finish() const {
    std::size_t told = errors_;
    for (const std::size_t each : exits_) told += each;
    std::cout << "{\"summary\": {\"backend\": \"onnxruntime\", \"images\": " << told
              << ", \"errors\": " << errors_ << ", \"exits\": [";
    for (std::size_t i = 0; i < exits_.size(); ++i) std::cout << (i > 0 ? ", " : "") << exits_[i];
    std::cout << "]}}" << std::endl;
    return errors_ > 0 ? 3 : 0;
  }

 private:
  void run(const std::filesystem::path& path, const classify::Images& images, std::size_t start,
           std::size_t count) {
    const std::size_t place = start * dispatcher_.manifest().image().elements();
    const auto before = std::chrono::steady_clock::now();
    const early_exit::Dispatched found = std::visit(
        [&](const auto& values) {
          return dispatcher_.run(values.data() + place, count, arguments_.times);
        },
        images.values);
    const std::chrono::duration<double, std::milli> took =
        std::chrono::steady_clock::now() - before;
    for (std::size_t i = 0; i < count; ++i) {
      const std::string row = images.is_one ? "" : "[" + std::to_string(start + i) + "]";
      tell(path.string() + row, found, i, took.count());
    }
  }

  void tell(const std::string& name, const early_exit::Dispatched& found, std::size_t image,
            double latency_ms) {
    if (found.classes[image] < 0) {
      tell_error(name, "the network gave logits that are not finite");
      return;
    }
    const early_exit::Manifest& manifest = dispatcher_.manifest();
    const auto place = static_cast<std::size_t>(found.classes[image]);
    const auto exit = static_cast<std::size_t>(found.exits[image]);
    const auto& at = manifest.segments[exit].at;
    const float* first = found.logits_of(image);
    const std::vector<double> logits(first, first + found.class_count);
    ++exits_[exit];
    std::cout << "{\"image\": " << json_text(name)
              << ", \"class\": " << json_text(manifest.classes[place])
              << ", \"class_index\": " << place
              << ", \"confidence\": " << json_number(confidence_of(logits, logits[place]))
              << ", \"exit\": " << exit << ", \"exit_at\": " << (at ? json_text(*at) : "null")
              << ", \"latency_ms\": " << json_number(latency_ms);
    if (arguments_.times) std::cout << ", \"segment_ms\": " << json_list(times_until(found, exit));
    if (arguments_.logits) std::cout << ", \"logits\": " << json_list(logits);
    std::cout << "}\n";
  }

  static std::vector<double> times_until(const early_exit::Dispatched& found, std::size_t exit) {
    std::vector<double> times;
    for (const early_exit::SegmentTime& each : found.segment_ms) {
      if (each.segment <= exit) times.push_back(each.milliseconds);
    }
    return times;
  }

  void tell_error(const std::string& name, const std::string& error) {
    ++errors_;
    std::cout << "{\"image\": " << json_text(name) << ", \"error\": " << json_text(error) << "}\n";
  }

  const Arguments& arguments_;
  early_exit::Dispatcher dispatcher_;
  classify::ImageReader reader_;
  std::vector<std::size_t> exits_;
  std::size_t errors_ = 0;
};

int work(const Arguments& arguments) {
  const std::vector<std::filesystem::path> files = files_of(arguments.images);
  Classifier classifier(arguments);
  for (const std::filesystem::path& file : files) classifier.take(file);
  return classifier.finish();
}

}  // namespace

int main(int count, char** texts) {
  int code = 1;
  try {
    code = work(parsed({texts + 1, texts + count}));
  } catch (const std::invalid_argument& error) {
    std::cerr << kUsage << "classify: " << error.what() << "\n";
    return 2;
  } catch (const early_exit::Error& error) {
    std::cerr << "classify: " << error.what() << std::endl;
    std::_Exit(error.exit_code());  // not waiting for a first call that does not end
  } catch (const std::exception& error) {
    std::cerr << "classify: " << error.what() << "; this is an error of the program" << std::endl;
    std::_Exit(1);
  }
  return code;
}
