// Values of a JSON file that may come from a stranger: each is of its kind and in its range.
//
// All throw Unusable with a short sentence; who reads the file adds which file it was.
#pragma once

#include <limits>
#include <optional>
#include <type_traits>
#include <utility>

#include "shown.hpp"

namespace early_exit::detail {

constexpr std::int64_t kLargest = std::int64_t{1} << 31;  // elements, and most other counts
constexpr std::size_t kMaxText = 1000;                    // characters of a name

[[noreturn]] inline void refuse_kind(const Json& value, const char* expected) {
  throw Unusable(shown(value) + " in place of " + expected);
}

/// The value of a key. Of what is no object the words are those of Python.
inline const Json& member(const Json& value, const char* key) {
  if (value.is<std::string>()) throw Unusable("string indices must be integers, not 'str'");
  if (value.is<List>()) throw Unusable("list indices must be integers or slices, not str");
  if (!value.is<Object>()) {
    throw Unusable("'" + std::string(kind_of(value)) + "' object is not subscriptable");
  }
  const Json* found = value.find(key);
  if (found == nullptr) throw Unusable("'" + std::string(key) + "' is missing");
  return *found;
}

/// What `read` makes of each item of a list; an empty one only where that is allowed.
template <typename Read>
auto items(const Json& value, Read read, bool empty = false, std::size_t most = kLargest) {
  if (!value.is<List>() || (value.as<List>().empty() && !empty) ||
      value.as<List>().size() > most) {
    refuse_kind(value, "a list");
  }
  std::vector<std::decay_t<decltype(read(value))>> found;
  found.reserve(value.as<List>().size());
  for (const Json& item : value.as<List>()) found.push_back(read(item));
  return found;
}

/// A whole number that fits 64 bits; those beyond are kept at the ends of the range.
inline std::int64_t saturated(const Whole& whole) {
  constexpr auto largest = std::numeric_limits<std::int64_t>::max();
  const bool is_negative = whole.digits.front() == '-';
  std::int64_t value = 0;
  for (const char digit : whole.digits.substr(is_negative ? 1 : 0)) {
    if (value > (largest - 9) / 10) return is_negative ? -largest : largest;
    value = 10 * value + (digit - '0');
  }
  return is_negative ? -value : value;
}

/// A whole number of a range; true and false are none.
inline std::int64_t count(const Json& value, std::int64_t smallest = 0,
                          std::int64_t largest = kLargest) {
  const std::int64_t found = value.is<Whole>() ? saturated(value.as<Whole>()) : smallest - 1;
  if (found < smallest || found > largest) refuse_kind(value, "a whole number");
  return found;
}

/// Two whole numbers, the first not above the second.
inline std::pair<std::int64_t, std::int64_t> pair(const Json& value, std::int64_t smallest,
                                                  std::int64_t largest = kLargest) {
  const auto found =
      items(value, [&](const Json& item) { return count(item, smallest, largest); }, false, 2);
  if (found.size() < 2) throw Unusable("not enough values to unpack (expected 2, got 1)");
  if (found[0] > found[1]) {
    throw Unusable(std::to_string(found[0]) + " before " + std::to_string(found[1]));
  }
  return {found[0], found[1]};
}

inline double number(const Json& value) {
  if (value.is<double>()) return value.as<double>();
  if (!value.is<Whole>()) refuse_kind(value, "a number");
  const double found = double_of(value.as<Whole>().digits);
  if (std::isinf(found)) throw Unusable("a number that is too large");
  return found;
}

inline const std::string& text(const Json& value) {
  if (!value.is<std::string>() || length_of(value.as<std::string>()) > kMaxText) {
    refuse_kind(value, "text");
  }
  return value.as<std::string>();
}

/// A text that can be printed.
inline const std::string& name(const Json& value) {
  if (!is_printable(text(value))) refuse_kind(value, "a name");
  return value.as<std::string>();
}

inline const Json& object(const Json& value) {
  if (!value.is<Object>()) refuse_kind(value, "an object");
  return value;
}

/// A value that may be null, which is then none.
template <typename Read>
auto optional(const Json* value, Read read) {
  using Found = std::optional<std::decay_t<decltype(read(*value))>>;
  return value == nullptr || value->is_null() ? Found() : Found(read(*value));
}

}  // namespace early_exit::detail
