// The host side of early exit: call the segments in order, stop at the first gate that fires.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>

#include "bundle.hpp"

namespace early_exit::detail {

constexpr std::int64_t kNoClass = -1;
constexpr float kNotANumber = std::numeric_limits<float>::quiet_NaN();

inline bool all_finite(const float* values, std::size_t count) {
  constexpr std::uint32_t exponent = 0x7F800000;
  bool found = true;
  for (std::size_t i = 0; i < count; ++i) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, values + i, sizeof bits);
    found &= (bits & exponent) != exponent;
  }
  return found;
}

/// The most likely class; none where there are no logits, or where one is not finite.
inline std::int64_t class_of(const float* logits, std::size_t count) {
  if (count == 0 || !all_finite(logits, count)) return kNoClass;
  return std::max_element(logits, logits + count) - logits;
}

}  // namespace early_exit::detail

namespace early_exit {

Dispatcher::Dispatcher(const std::filesystem::path& bundle, const Options& options)
    : manifest_(read_manifest(bundle)) {
  if (!options.thresholds.empty()) manifest_.set_thresholds(options.thresholds);
  backend_ = open_onnxruntime(bundle, manifest_, options);
  bars_ = manifest_.thresholds();
  further_ = manifest_.further_outputs();
  image_elements_ = manifest_.image().elements();
}

Dispatcher::Dispatcher(Manifest manifest, std::unique_ptr<Backend> backend)
    : manifest_(std::move(manifest)),
      backend_(std::move(backend)),
      bars_(manifest_.thresholds()),
      further_(manifest_.further_outputs()),
      image_elements_(manifest_.image().elements()) {}

void Dispatcher::set_thresholds(const std::vector<double>& thresholds) {
  const std::lock_guard<std::mutex> held(lock_);
  manifest_.set_thresholds(thresholds);
  bars_ = manifest_.thresholds();
}

Dispatched Dispatcher::run(const float* images, std::size_t count, bool times) {
  check_count(count);
  const std::lock_guard<std::mutex> held(lock_);
  const bool has_poisoned = replace_poisoned(images, count);
  const float* batch = has_poisoned ? blanked_.data() : images;
  Dispatched found;
  found.class_count = manifest_.classes.size();
  found.logits.resize(count * found.class_count);
  found.exits.assign(count, static_cast<std::int64_t>(manifest_.exits()));
  if (!further_.empty()) {
    run_whole(batch, count, found, times);
  } else if (count == 1) {
    run_one(batch, found, times);
  } else {
    for (std::size_t start = 0; start < count; start += max_batch()) {
      run_batch(batch, start, std::min(max_batch(), count - start), found, times);
    }
  }
  for (std::size_t i = 0; has_poisoned && i < count; ++i) {
    if (poisoned_[i]) spoil(i, found);
  }
  found.classes.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    found.classes.push_back(detail::class_of(found.logits_of(i), found.class_count));
  }
  return found;
}

Dispatched Dispatcher::run(const std::uint8_t* pixels, std::size_t count, bool times) {
  check_count(count);
  if (!manifest_.preprocessing) {
    throw UserInputError("images are of type uint8; expected float32");
  }
  std::vector<float> images(count * image_elements_);
  for (std::size_t i = 0; i < count; ++i) {
    detail::normalize(*manifest_.preprocessing, pixels + i * image_elements_,
                      images.data() + i * image_elements_);
  }
  return run(images.data(), count, times);
}

void Dispatcher::check_count(std::size_t count) const {
  if (count > 0) return;
  std::string shape = detail::shown(manifest_.image().shape);
  shape = shape.substr(1, shape.size() - 2);
  throw UserInputError("images have the shape (0, " + shape + "); expected (N, " + shape +
                       ") with N at least 1, which " + manifest_.name + " takes");
}

/// Where an image is not finite, copy all, with blank ones in place of those.
bool Dispatcher::replace_poisoned(const float* images, std::size_t count) {
  const std::size_t size = image_elements_;
  if (detail::all_finite(images, count * size)) return false;
  blanked_.assign(images, images + count * size);
  poisoned_.assign(count, false);
  for (std::size_t i = 0; i < count; ++i) {
    if (detail::all_finite(images + i * size, size)) continue;
    poisoned_[i] = true;
    std::fill_n(blanked_.data() + i * size, size, 0.0f);
  }
  return true;
}

/// Run one image: what most devices do all day, in few steps.
void Dispatcher::run_one(const float* image, Dispatched& found, bool times) {
  backend_->load(image, 1);
  for (std::size_t segment = 0;; ++segment) {
    const float* gate = run_segment(segment, 1, found, times);
    if (segment == bars_.size() || detail::leaves(*gate, bars_[segment])) {
      found.exits[0] = static_cast<std::int64_t>(segment);
      copy_logits(0, 0, found);
      return;
    }
  }
}

void Dispatcher::run_batch(const float* images, std::size_t start, std::size_t count,
                           Dispatched& found, bool times) {
  backend_->load(images + start * image_elements_, count);
  std::vector<std::size_t> alive(count), kept;  // places of the images still on their way
  for (std::size_t i = 0; i < count; ++i) alive[i] = start + i;
  for (std::size_t segment = 0; segment < bars_.size(); ++segment) {
    const float* gates = run_segment(segment, alive.size(), found, times);
    kept.clear();
    for (std::size_t row = 0; row < alive.size(); ++row) {
      if (!detail::leaves(gates[row], bars_[segment])) {
        kept.push_back(row);
        continue;
      }
      found.exits[alive[row]] = static_cast<std::int64_t>(segment);
      copy_logits(row, alive[row], found);
    }
    if (kept.empty()) return;
    if (kept.size() == alive.size()) continue;
    backend_->keep(kept);
    for (std::size_t row = 0; row < kept.size(); ++row) alive[row] = alive[kept[row]];
    alive.resize(kept.size());
  }
  run_segment(bars_.size(), alive.size(), found, times);
  for (std::size_t row = 0; row < alive.size(); ++row) copy_logits(row, alive[row], found);
}

/// Run a network without exits that gives more than logits.
void Dispatcher::run_whole(const float* images, std::size_t count, Dispatched& found,
                           bool times) {
  for (const TensorSpec& spec : further_) {
    found.outputs.push_back({spec, std::vector<unsigned char>(count * spec.image_bytes())});
  }
  for (std::size_t start = 0; start < count; start += max_batch()) {
    const std::size_t rows = std::min(max_batch(), count - start);
    backend_->load(images + start * image_elements_, rows);
    run_segment(0, rows, found, times);
    for (std::size_t row = 0; row < rows; ++row) copy_logits(row, start + row, found);
    for (Output& output : found.outputs) {
      const std::size_t size = output.spec.image_bytes();
      std::memcpy(output.bytes.data() + start * size, backend_->output(output.spec.name),
                  rows * size);
    }
  }
  found.exits.assign(count, 0);
}

const float* Dispatcher::run_segment(std::size_t segment, std::size_t images, Dispatched& found,
                                     bool times) {
  if (!times) return backend_->run(segment);
  const auto start = std::chrono::steady_clock::now();
  const float* gates = backend_->run(segment);
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
  found.segment_ms.push_back({segment, images, took.count()});
  return gates;
}

void Dispatcher::copy_logits(std::size_t from, std::size_t to, Dispatched& found) {
  const std::size_t size = found.class_count;
  if (size == 0) return;
  std::copy_n(backend_->logits() + from * size, size, found.logits.data() + to * size);
}

/// Let the results of an image that is not finite say so: NaN, or -1 of whole numbers.
void Dispatcher::spoil(std::size_t image, Dispatched& found) const {
  std::fill_n(found.logits.data() + image * found.class_count, found.class_count,
              detail::kNotANumber);
  for (Output& output : found.outputs) {
    const std::size_t elements = output.spec.elements();
    unsigned char* bytes = output.bytes.data() + image * output.spec.image_bytes();
    const auto fill = [&](auto value) {
      for (std::size_t i = 0; i < elements; ++i) {
        std::memcpy(bytes + i * sizeof value, &value, sizeof value);
      }
    };
    if (output.spec.type == ElementType::float32) fill(detail::kNotANumber);
    if (output.spec.type == ElementType::float16) fill(std::uint16_t{0x7E00});  // NaN
    if (output.spec.type == ElementType::int32) fill(std::int32_t{detail::kNoClass});
  }
}

}  // namespace early_exit
