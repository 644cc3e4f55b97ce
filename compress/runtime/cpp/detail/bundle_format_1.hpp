// Manifests of format 1, as values of format 2: what reads bundles knows of one format alone.
//
// Format 1 had one tensor from each segment to the next, `hidden_in` and `hidden` in the files,
// whichever tensor that was. Segments had the numbers of their blocks, the first and the one after
// the last, so an exit stood behind a module `blocks.7`.
#pragma once

#include "checks.hpp"

namespace early_exit::detail {

using Blocks = std::vector<std::pair<std::int64_t, std::int64_t>>;

/// The blocks of each segment, once they run on from the first block.
inline Blocks checked_blocks(const List& parts) {
  Blocks found;
  std::int64_t done = 0;
  for (const Json& part : parts) {
    const auto [first, stop] = pair(member(part, "blocks"), 0);
    const std::string place = "segment " + std::to_string(found.size());
    if (first != done) {
      throw Unusable(place + " begins at block " + std::to_string(first) + ", expected " +
                     std::to_string(done));
    }
    if (first == stop && parts.size() > 1) throw Unusable(place + " holds no block");
    found.emplace_back(first, stop);
    done = stop;
  }
  return found;
}

inline Json renamed(const Json& spec, const std::string& name) {
  Json found = spec;
  found.set("alias", member(spec, "name"));
  found.set("name", Json(name));
  return found;
}

inline Json upgraded_segment(std::size_t place, const Json& part, std::int64_t stop,
                             std::size_t last) {
  List inputs = items(member(part, "inputs"), object);
  List outputs = items(member(part, "outputs"), object);
  if (inputs.size() > 1) {
    throw Unusable("segment " + std::to_string(place) + " takes more than one tensor");
  }
  if (place > 0) inputs[0] = renamed(inputs[0], "hidden_" + std::to_string(place - 1));
  for (Json& spec : outputs) {
    if (place == last) break;
    const Json& name = member(spec, "name");
    if (name.is<std::string>() && name.as<std::string>() == "hidden") {
      spec = renamed(spec, "hidden_" + std::to_string(place));
    }
  }
  Json found = part;
  found.set("at", place < last ? Json("blocks." + std::to_string(stop - 1)) : Json());
  found.set("inputs", Json(std::move(inputs)));
  found.set("outputs", Json(std::move(outputs)));
  return found;
}

/// The value of a manifest of format 1 as one of format 2 has it.
inline Json upgraded(const Json& value) {
  const List parts = items(member(value, "segments"), object);
  const Blocks blocks = checked_blocks(parts);
  List segments;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    segments.push_back(upgraded_segment(i, parts[i], blocks[i].second, parts.size() - 1));
  }
  Json found = value;
  found.set("segments", Json(std::move(segments)));
  return found;
}

}  // namespace early_exit::detail
