// Manifests: what their values are, one by one. That they fit together is looked at elsewhere.
#pragma once

#include "bundle_format_1.hpp"
#include "preprocessing.hpp"
#include "thresholds.hpp"

namespace early_exit::detail {

constexpr char kFormat[] = "compress.bundle/2", kFormat1[] = "compress.bundle/1";
constexpr std::int64_t kMaxMacs = std::int64_t{1} << 53;
constexpr std::size_t kMaxBytes = std::size_t{64} << 20;  // of a manifest
constexpr std::size_t kMaxSegments = 1 << 10;
constexpr std::size_t kMaxRank = 8;
constexpr std::size_t kMaxOutputs = 1 << 8;  // of a segment, and as many inputs
constexpr std::size_t kMaxTensors = 1 << 13;  // of all segments
constexpr std::int64_t kMaxOpset = 1 << 10;
constexpr std::int64_t kMaxProbeImages = 8;
constexpr std::int64_t kMaxBatch = 1 << 12;
constexpr std::uint64_t kMaxBatchBytes = std::uint64_t{16} << 30;

struct Element {
  ElementType type;
  const char* name;
  std::size_t bytes;
  int onnx;  // number of the type in ONNX Runtime
};
constexpr Element kElements[] = {{ElementType::float32, "float32", 4, 1},
                                 {ElementType::float16, "float16", 2, 10},
                                 {ElementType::int32, "int32", 4, 6},
                                 {ElementType::int64, "int64", 8, 7},
                                 {ElementType::boolean, "bool", 1, 9}};

inline const Element& element_of(ElementType type) {
  return kElements[static_cast<std::size_t>(type)];
}

inline const Element* element_named(const std::string& name) {
  for (const Element& each : kElements) {
    if (name == each.name) return &each;
  }
  return nullptr;
}

/// Whether a tensor of that shape has no more elements than any may have.
inline bool is_small(const std::vector<std::int64_t>& shape) {
  std::int64_t product = 1;
  for (const std::int64_t size : shape) {
    if (size > kLargest / product) return false;
    product *= size;
  }
  return true;
}

inline TensorSpec tensor_of(const Json& value) {
  TensorSpec spec;
  spec.shape = items(
      member(value, "shape"), [](const Json& size) { return count(size, 1); }, true, kMaxRank);
  const std::string& dtype = text(member(value, "dtype"));
  const Element* element = element_named(dtype);
  if (!is_small(spec.shape) || element == nullptr) {
    throw Unusable("a tensor of shape " + shown(spec.shape) + " and type " + in_quotes(dtype));
  }
  spec.type = element->type;
  spec.name = name(member(value, "name"));
  spec.alias = optional(value.find("alias"), name);
  return spec;
}

inline bool is_plain_file(const std::string& file) {
  constexpr std::string_view suffix = ".onnx";
  return file.find('/') == std::string::npos && file.size() >= suffix.size() &&
         file.compare(file.size() - suffix.size(), suffix.size(), suffix) == 0 &&
         file.front() != '.';
}

inline bool is_sha256(const std::string& digest) {
  return digest.size() == 64 && digest.find_first_not_of("0123456789abcdef") == std::string::npos;
}

inline Segment segment_of(const Json& value) {
  Segment segment;
  const Json& threshold = member(value, "threshold");
  const Json& at = member(value, "at");
  segment.threshold =
      optional(&threshold, [](const Json& bar) { return checked_threshold(number(bar)); });
  segment.file = text(member(value, "file"));
  segment.sha256 = text(member(value, "sha256"));
  if (!is_plain_file(segment.file)) {
    throw Unusable("file " + in_quotes(segment.file) + " is not a plain name that ends with .onnx");
  }
  if (!is_printable(segment.file) || !is_sha256(segment.sha256)) {
    throw Unusable("file " + in_quotes(segment.file) + " with sha256 " +
                   in_quotes(segment.sha256, 80));
  }
  const Json& precision = member(value, "precision");
  segment.precision = precision.is<std::string>() ? precision.as<std::string>() : "";
  if (segment.precision != "fp32" && segment.precision != "fp16" && segment.precision != "int8") {
    throw Unusable("precision " + shown(precision));
  }
  segment.at = optional(&at, name);
  segment.macs = count(member(value, "macs"), 0, kMaxMacs);
  segment.inputs = items(member(value, "inputs"), tensor_of, false, kMaxOutputs);
  segment.outputs = items(member(value, "outputs"), tensor_of, false, kMaxOutputs);
  return segment;
}

inline std::pair<std::int64_t, std::int64_t> batch_of(const Json& value) {
  const auto batch = pair(value, 1, kMaxBatch);
  if (batch.first != 1) {  // images leave one by one, so any number may travel on
    throw Unusable("batches from " + std::to_string(batch.first) + " images on");
  }
  return batch;
}

/// What `[\w-][\w.-]{0,80}\.bin` matches, in ASCII.
inline bool is_probe_file(const std::string& file) {
  constexpr std::string_view suffix = ".bin";
  constexpr std::string_view others = "_-.";
  if (file.size() < 1 + suffix.size() || file.size() > 81 + suffix.size()) return false;
  if (file.front() == '.') return false;
  if (file.compare(file.size() - suffix.size(), suffix.size(), suffix) != 0) return false;
  for (const char c : file) {
    const bool is_alphanumeric =
        (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (!is_alphanumeric && others.find(c) == std::string_view::npos) return false;
  }
  return true;
}

/// The probe is for whoever builds engines; here it must only be what Python would take.
inline void check_probe(const Json* value) {
  if (value == nullptr || value->is_null()) return;
  const Json& probe = object(*value);
  const std::string& file = text(member(probe, "file"));
  const std::string& sha256 = text(member(probe, "sha256"));
  if (!is_probe_file(file)) {
    throw Unusable("probe " + in_quotes(file) + " is not a plain name that ends with .bin");
  }
  if (!is_sha256(sha256)) {
    throw Unusable("probe " + in_quotes(file) + " with sha256 " + in_quotes(sha256, 80));
  }
  count(member(probe, "images"), 1, kMaxProbeImages);
}

inline Manifest manifest_of(const Json& value) {
  Manifest manifest;
  const Json& preprocessing = member(value, "preprocessing");
  manifest.name = name(member(value, "name"));
  manifest.classes = items(member(value, "classes"), text, true);
  manifest.preprocessing = optional(&preprocessing, preprocessing_of);
  manifest.batch = batch_of(member(value, "batch"));
  manifest.target = name(member(value, "target"));
  manifest.opset = count(member(value, "opset"), 1, kMaxOpset);
  manifest.segments = items(member(value, "segments"), segment_of, false, kMaxSegments);
  for (const char* key : {"parity", "provenance", "notes"}) object(member(value, key));
  check_probe(value.find("probe"));
  return manifest;
}

}  // namespace early_exit::detail

namespace early_exit {

const char* name_of(ElementType type) { return detail::element_of(type).name; }

std::size_t size_of(ElementType type) { return detail::element_of(type).bytes; }

std::size_t TensorSpec::elements() const {
  std::size_t product = 1;
  for (const std::int64_t size : shape) product *= static_cast<std::size_t>(size);
  return product;
}

std::vector<TensorSpec> Segment::gives() const {
  std::vector<TensorSpec> found;
  if (!threshold) return found;
  for (const TensorSpec& spec : outputs) {
    if (spec.name != "logits" && spec.name != "gate") found.push_back(spec);
  }
  return found;
}

std::vector<double> Manifest::thresholds() const {
  std::vector<double> found;
  for (const Segment& segment : segments) {
    if (segment.threshold) found.push_back(*segment.threshold);
  }
  return found;
}

std::vector<TensorSpec> Manifest::further_outputs() const {
  std::vector<TensorSpec> found;
  for (const TensorSpec& spec : segments.back().outputs) {
    if (spec.name != "logits") found.push_back(spec);
  }
  return found;
}

void Manifest::set_thresholds(const std::vector<double>& thresholds) {
  const std::vector<double> bars = detail::checked_thresholds(thresholds, exits());
  for (std::size_t i = 0; i < bars.size(); ++i) segments[i].threshold = bars[i];
}

}  // namespace early_exit
