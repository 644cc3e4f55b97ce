// Do the segments of a manifest fit together, as those of one network, in their order?
#pragma once

#include <algorithm>
#include <set>
#include <unordered_map>
#include <unordered_set>

#include "manifest.hpp"

namespace early_exit::detail {

inline std::vector<std::string> names_of(const std::vector<TensorSpec>& specs) {
  std::vector<std::string> found;
  for (const TensorSpec& spec : specs) found.push_back(spec.name);
  return found;
}

inline void check_image(const Manifest& manifest) {
  const TensorSpec& image = manifest.image();
  const auto& taken = manifest.segments.front().inputs;
  if (taken.size() != 1 || image.name != "image") {
    throw Unusable("the first segment takes " + joined(names_of(taken)) +
                   ", expected the image alone");
  }
  if (image.type != ElementType::float32 || image.shape.size() != 3) {
    throw Unusable("the first segment takes " + std::string(name_of(image.type)) + " images of " +
                   shown(image.shape));
  }
  if (!manifest.preprocessing) return;
  const Preprocessing& how = *manifest.preprocessing;
  const std::vector<std::int64_t> prepared = {static_cast<std::int64_t>(how.mean.size()),
                                              how.height, how.width};
  if (image.shape != prepared) {
    throw Unusable("images of " + shown(image.shape) + ", preprocessing to " + shown(prepared));
  }
}

/// Refuse a name that a segment has twice, of those in the bundle or of those in its file.
template <typename NameOf>
void check_names(const Segment& segment, NameOf name_of_spec) {
  std::unordered_map<std::string, int> counts;
  for (const auto* side : {&segment.inputs, &segment.outputs}) {
    for (const TensorSpec& spec : *side) ++counts[name_of_spec(spec)];
  }
  for (const auto* side : {&segment.inputs, &segment.outputs}) {
    for (const TensorSpec& spec : *side) {
      if (counts[name_of_spec(spec)] > 1) {
        throw Unusable(segment.file + " has two tensors of the name " +
                       in_quotes(name_of_spec(spec)));
      }
    }
  }
}

inline bool is_reserved(const std::string& name) {
  for (const char* each : {"image", "hidden_in", "hidden", "logits", "gate", "exit"}) {
    if (name == each) return true;
  }
  return false;
}

inline bool is_own_name(const std::string& name) {
  constexpr char letters[] =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.";
  return !is_reserved(name) && !name.empty() &&
         name.find_first_not_of(letters) == std::string::npos;
}

/// What a segment must give; of a network without exits, what it gives, once checked.
inline std::vector<std::string> result_names(const Manifest& manifest, const Segment& segment) {
  std::vector<std::string> found;
  if (&segment != &manifest.segments.back()) {
    found = names_of(segment.gives());
    found.insert(found.end(), {"logits", "gate"});
    return found;
  }
  if (manifest.exits() > 0 || !manifest.classes.empty()) found.emplace_back("logits");
  if (manifest.exits() > 0) return found;
  for (const TensorSpec& spec : manifest.further_outputs()) {
    const std::string subject = segment.file + " gives " + in_quotes(spec.name);
    if (!is_own_name(spec.name)) throw Unusable(subject + ", which is no name of its own");
    if (spec.type == ElementType::int64 || spec.type == ElementType::boolean) {
      throw Unusable(subject + " of type " + name_of(spec.type));
    }
    found.push_back(spec.name);
  }
  return found;
}

inline void check_kind(const Segment& segment, const char* name, const TensorSpec& expected,
                       const std::string& otherwise) {
  for (const TensorSpec& spec : segment.outputs) {
    if (spec.name == name && !spec.is_like(expected)) throw Unusable(segment.file + otherwise);
  }
}

inline void check_results(const Manifest& manifest, const Segment& segment) {
  const bool is_last = &segment == &manifest.segments.back();
  if (!segment.threshold != is_last) {
    throw Unusable(segment.file + " has the threshold " +
                   (segment.threshold ? shown(*segment.threshold) : "None"));
  }
  const std::vector<std::string> wanted = result_names(manifest, segment);
  if (names_of(segment.outputs) != wanted) {
    throw Unusable(segment.file + " does not give " + joined(wanted) + ", and no more");
  }
  const auto classes = static_cast<std::int64_t>(manifest.classes.size());
  check_kind(segment, "logits", {"", ElementType::float32, {classes}, {}},
             " gives other logits than " + std::to_string(classes) + " classes");
  check_kind(segment, "gate", {"", ElementType::float32, {}, {}}, " gives a gate of another shape");
}

inline void check_positions(const Manifest& manifest) {
  std::unordered_map<std::string, int> counts;
  for (const Segment& segment : manifest.segments) {
    if (segment.at) ++counts[*segment.at];
  }
  for (const Segment& segment : manifest.segments) {
    if (segment.at.has_value() != segment.threshold.has_value() || segment.at == "") {
      throw Unusable(segment.file + " has its exit at " +
                     (segment.at ? in_quotes(*segment.at) : "None"));
    }
    if (segment.at && counts[*segment.at] > 1) {
      throw Unusable("two exits at " + in_quotes(*segment.at));
    }
  }
}

/// Refuse a tensor that is not made once, and taken later, as it was made.
inline void check_crossing(const Manifest& manifest) {
  std::vector<TensorSpec> made = {manifest.image()};
  std::unordered_map<std::string, std::size_t> places = {{"image", 0}};
  std::unordered_set<std::string> taken;
  for (const Segment& segment : manifest.segments) {
    for (const TensorSpec& spec : segment.inputs) {
      const auto source = places.find(spec.name);
      if (source == places.end()) {
        throw Unusable(segment.file + " takes " + in_quotes(spec.name) +
                       ", which no segment before it gives");
      }
      if (!made[source->second].is_like(spec)) {
        throw Unusable(segment.file + " takes " + spec.name + " of another type or shape");
      }
      taken.insert(spec.name);
    }
    for (const TensorSpec& spec : segment.gives()) {
      const std::string expected = "hidden_" + std::to_string(made.size() - 1);
      if (spec.name != expected) {
        throw Unusable(segment.file + " gives " + in_quotes(spec.name) + ", expected " + expected);
      }
      places.emplace(spec.name, made.size());
      made.push_back(spec);
    }
  }
  for (const TensorSpec& spec : made) {
    if (taken.count(spec.name) == 0) throw Unusable("no segment takes " + spec.name);
  }
}

/// Refuse batches of which one image, in all tensors that are there at a time, is too large.
inline void check_memory(const Manifest& manifest) {
  std::uint64_t largest = 0;
  std::vector<TensorSpec> waiting = {manifest.image()};
  for (std::size_t i = 0; i < manifest.segments.size(); ++i) {
    std::uint64_t bytes = 0;
    for (const TensorSpec& spec : waiting) bytes += spec.image_bytes();
    for (const TensorSpec& spec : manifest.segments[i].outputs) bytes += spec.image_bytes();
    largest = std::max(largest, bytes);
    waiting = manifest.living(i);
  }
  if (static_cast<std::uint64_t>(manifest.batch.second) * largest > kMaxBatchBytes) {
    throw Unusable("batches of " + std::to_string(manifest.batch.second) + " images of " +
                   std::to_string(largest) + " bytes at a time");
  }
}

/// Unusable unless the segments are those of one network, in their order.
inline void check_consistent(const Manifest& manifest) {
  std::size_t named = 0;
  for (const Segment& segment : manifest.segments) {
    named += segment.inputs.size() + segment.outputs.size();
  }
  if (named > kMaxTensors) {
    throw Unusable("its segments name " + std::to_string(named) + " tensors, more than " +
                   std::to_string(kMaxTensors));
  }
  check_image(manifest);
  std::set<std::string> files;
  for (const Segment& segment : manifest.segments) {
    check_names(segment, [](const TensorSpec& spec) { return spec.name; });
    check_names(segment, [](const TensorSpec& spec) { return spec.file_name(); });
    check_results(manifest, segment);
    files.insert(segment.file);
  }
  if (files.size() < manifest.segments.size()) throw Unusable("two segments in one file");
  check_positions(manifest);
  check_crossing(manifest);
  check_memory(manifest);
}

}  // namespace early_exit::detail

namespace early_exit {

std::vector<TensorSpec> Manifest::living(std::size_t segment) const {
  std::unordered_set<std::string> later;
  for (std::size_t i = segment + 1; i < segments.size(); ++i) {
    for (const TensorSpec& spec : segments[i].inputs) later.insert(spec.name);
  }
  std::vector<TensorSpec> found;
  if (later.count("image") > 0) found.push_back(image());
  for (std::size_t i = 0; i <= segment; ++i) {
    for (const TensorSpec& spec : segments[i].gives()) {
      if (later.count(spec.name) > 0) found.push_back(spec);
    }
  }
  return found;
}

}  // namespace early_exit
