// Memory of the tensors that cross between segments: those that never live at once share a place.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <new>
#include <set>

#include "../early_exit.hpp"

namespace early_exit::detail {

/// Bytes that nothing was written to yet, so that what is never used costs no memory.
class Buffer {
 public:
  explicit Buffer(std::size_t size) {
    constexpr std::size_t cache_line = 64;
    void* found = nullptr;
    if (::posix_memalign(&found, cache_line, size > 0 ? size : 1) != 0) throw std::bad_alloc();
    bytes_.reset(static_cast<unsigned char*>(found));
  }

  unsigned char* bytes() const { return bytes_.get(); }
  float* floats() const { return reinterpret_cast<float*>(bytes_.get()); }

 private:
  struct Free {
    void operator()(unsigned char* bytes) const { std::free(bytes); }
  };
  std::unique_ptr<unsigned char[], Free> bytes_;
};

struct Places {
  std::map<std::string, std::size_t> of;  // number of the place of each tensor
  std::vector<std::size_t> image_bytes;   // of each place
};

/// Take the free place that is nearest in size, or a new one where none is free.
inline std::size_t nearest_place(std::vector<std::size_t>& free, std::vector<std::size_t>& sizes,
                                 std::size_t size) {
  if (free.empty()) {
    sizes.push_back(0);
    return sizes.size() - 1;
  }
  const auto distance = [&](std::size_t place) {
    return sizes[place] > size ? sizes[place] - size : size - sizes[place];
  };
  auto best = free.begin();
  for (auto each = free.begin(); each != free.end(); ++each) {
    if (distance(*each) < distance(*best)) best = each;
  }
  const std::size_t place = *best;
  free.erase(best);
  return place;
}

/// Give every crossing tensor a place that no other has while it lives.
inline Places places_of(const Manifest& manifest) {
  Places places;
  std::vector<std::size_t> free;
  for (std::size_t number = 0; number < manifest.segments.size(); ++number) {
    std::set<std::string> ends;
    for (const TensorSpec& spec : manifest.segments[number].inputs) ends.insert(spec.name);
    for (const TensorSpec& spec : manifest.living(number)) ends.erase(spec.name);
    for (const TensorSpec& spec : manifest.segments[number].gives()) {
      const std::size_t place = nearest_place(free, places.image_bytes, spec.image_bytes());
      places.image_bytes[place] = std::max(places.image_bytes[place], spec.image_bytes());
      places.of[spec.name] = place;
    }
    for (const std::string& name : ends) {  // once the segment has run
      if (places.of.count(name) > 0) free.push_back(places.of[name]);
    }
  }
  return places;
}

}  // namespace early_exit::detail
