// JSON values and their reader, as strict as Python's json.loads, and as lenient.
//
// Whole numbers have any length and are kept as their digits. Texts are UTF-8; half a surrogate
// pair, which Python takes, is kept as the three bytes that it would be. Of a key that comes twice
// the last counts. NaN and Infinity are refused.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <locale>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace early_exit::detail {

/// A value that cannot be used; who reads the file adds which file it was.
class Unusable : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Member;
class Json;

struct Whole {
  std::string digits;  // with a sign where it is below 0
};

using List = std::vector<Json>;
using Object = std::vector<Member>;

class Json {
 public:
  using Content = std::variant<std::nullptr_t, bool, Whole, double, std::string, List, Object>;

  Json() : content(nullptr) {}
  Json(Content value) : content(std::move(value)) {}

  template <typename Kind>
  bool is() const {
    return std::holds_alternative<Kind>(content);
  }
  template <typename Kind>
  const Kind& as() const {
    return std::get<Kind>(content);
  }
  bool is_null() const { return is<std::nullptr_t>(); }

  /// The value of a key of an object; null where there is none.
  const Json* find(std::string_view key) const;
  /// Set the value of a key of an object.
  void set(std::string_view key, Json value);

  Content content;
};

struct Member {
  std::string key;
  Json value;
};

inline const Json* Json::find(std::string_view key) const {
  for (const Member& member : as<Object>()) {
    if (member.key == key) return &member.value;
  }
  return nullptr;
}

inline void Json::set(std::string_view key, Json value) {
  for (Member& member : std::get<Object>(content)) {
    if (member.key == key) {
      member.value = std::move(value);
      return;
    }
  }
  std::get<Object>(content).push_back({std::string(key), std::move(value)});
}

/// A decimal number, whatever the program's locale writes for a point; infinite where too large.
inline double double_of(const std::string& digits) {
  std::istringstream stream(digits);
  stream.imbue(std::locale::classic());
  double value = 0;
  stream >> value;
  if (stream.fail()) {
    const double infinite = std::numeric_limits<double>::infinity();
    return digits.front() == '-' ? -infinite : infinite;
  }
  return value;
}

/// Append a character, by its number in Unicode.
inline void append_utf8(std::string& text, std::uint32_t code) {
  const auto push = [&text](std::uint32_t byte) { text.push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    push(code);
  } else if (code < 0x800) {
    push(0xC0 | code >> 6);
    push(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    push(0xE0 | code >> 12);
    push(0x80 | (code >> 6 & 0x3F));
    push(0x80 | (code & 0x3F));
  } else {
    push(0xF0 | code >> 18);
    push(0x80 | (code >> 12 & 0x3F));
    push(0x80 | (code >> 6 & 0x3F));
    push(0x80 | (code & 0x3F));
  }
}

/// Return the character that begins at a place, and move the place behind it.
///
/// Unusable where the bytes are no UTF-8; `with_halves` lets halves of surrogate pairs pass.
inline std::uint32_t next_character(std::string_view text, std::size_t& place,
                                    bool with_halves = true) {
  const auto refuse = [&place]() -> std::uint32_t {
    throw Unusable("byte " + std::to_string(place) + " is no UTF-8");
  };
  const auto byte_at = [&text](std::size_t at) { return static_cast<unsigned char>(text[at]); };
  const std::uint32_t first = byte_at(place);
  if (first < 0x80) return text[place++];
  const int more = first >= 0xF0 ? 3 : first >= 0xE0 ? 2 : 1;
  if (first < 0xC2 || first > 0xF4 || text.size() - place <= static_cast<std::size_t>(more)) {
    return refuse();
  }
  std::uint32_t code = first & (0x3F >> more);
  for (int i = 1; i <= more; ++i) {
    const std::uint32_t next = byte_at(place + static_cast<std::size_t>(i));
    if ((next & 0xC0) != 0x80) return refuse();
    code = code << 6 | (next & 0x3F);
  }
  constexpr std::uint32_t smallest[] = {0, 0x80, 0x800, 0x10000};
  const bool is_half = code >= 0xD800 && code <= 0xDFFF;
  if (code < smallest[more] || code > 0x10FFFF || (is_half && !with_halves)) return refuse();
  place += static_cast<std::size_t>(more) + 1;
  return code;
}

class JsonReader {
 public:
  explicit JsonReader(std::string_view text) : text_(text) {}

  /// Read the one value of a file. Unusable where it is damaged.
  Json read() {
    for (std::size_t place = 0; place < text_.size();) next_character(text_, place, false);
    if (takes("\xEF\xBB\xBF")) refuse("Unexpected UTF-8 BOM (decode using utf-8-sig)");
    Json value = value_();
    skip_space();
    if (place_ < text_.size()) refuse("Extra data");
    return value;
  }

 private:
  static constexpr int kMaxDepth = 900;  // Python's is near 1000, of its version and its stack
  static constexpr std::size_t kMaxDigits = 4300;  // Python's own limit, as longer ones take long

  [[noreturn]] void refuse(const char* what) const {
    throw Unusable(std::string(what) + " (byte " + std::to_string(place_) + ")");
  }

  void skip_space() {
    while (place_ < text_.size() && std::string_view(" \t\n\r").find(text_[place_]) !=
                                        std::string_view::npos) {
      ++place_;
    }
  }

  bool takes(std::string_view word) {
    if (text_.substr(place_, word.size()) != word) return false;
    place_ += word.size();
    return true;
  }

  Json value_() {
    skip_space();
    if (takes("null")) return Json();
    if (takes("true")) return Json(true);
    if (takes("false")) return Json(false);
    if (takes("\"")) return Json(string());
    if (takes("[")) return nested([this] { return list(); });
    if (takes("{")) return nested([this] { return object(); });
    for (const char* constant : {"NaN", "Infinity", "-Infinity"}) {
      if (takes(constant)) throw Unusable(std::string(constant) + " in place of a number");
    }
    return number();
  }

  template <typename Read>
  Json nested(Read read) {
    if (++depth_ > kMaxDepth) refuse("its values are nested too deeply");
    Json value = read();
    --depth_;
    return value;
  }

  Json list() {
    List items;
    skip_space();
    if (takes("]")) return Json(std::move(items));
    while (true) {
      items.push_back(value_());
      skip_space();
      if (takes("]")) return Json(std::move(items));
      if (!takes(",")) refuse("Expecting ',' delimiter");
    }
  }

  Json object() {
    Object members;
    std::map<std::string, std::size_t> places;
    skip_space();
    if (takes("}")) return Json(std::move(members));
    while (true) {
      skip_space();
      if (!takes("\"")) refuse("Expecting property name enclosed in double quotes");
      std::string key = string();
      skip_space();
      if (!takes(":")) refuse("Expecting ':' delimiter");
      Json value = value_();
      const auto [known, is_new] = places.emplace(key, members.size());
      if (is_new) {
        members.push_back({std::move(key), std::move(value)});
      } else {
        members[known->second].value = std::move(value);
      }
      skip_space();
      if (takes("}")) return Json(std::move(members));
      if (!takes(",")) refuse("Expecting ',' delimiter");
    }
  }

  std::string string() {
    std::string found;
    while (true) {
      if (place_ >= text_.size()) refuse("Unterminated string");
      const char next = text_[place_];
      if (next == '"') {
        ++place_;
        return found;
      }
      if (static_cast<unsigned char>(next) < 0x20) refuse("Invalid control character");
      ++place_;
      if (next == '\\') {
        append_escaped(found);
      } else {
        found.push_back(next);
      }
    }
  }

  void append_escaped(std::string& found) {
    if (place_ >= text_.size()) refuse("Unterminated string");
    const char kind = text_[place_++];
    constexpr std::string_view kinds = "\"\\/bfnrt", meant = "\"\\/\b\f\n\r\t";
    const std::size_t at = kinds.find(kind);
    if (at != std::string_view::npos) {
      found.push_back(meant[at]);
    } else if (kind == 'u') {
      append_utf8(found, escaped_character());
    } else {
      refuse("Invalid \\escape");
    }
  }

  std::uint32_t escaped_character() {
    const std::uint32_t first = four_digits();
    if (first < 0xD800 || first > 0xDBFF || text_.substr(place_, 2) != "\\u") return first;
    const std::size_t before = place_;
    place_ += 2;
    const std::uint32_t second = four_digits();
    if (second >= 0xDC00 && second <= 0xDFFF) {
      return 0x10000 + ((first - 0xD800) << 10 | (second - 0xDC00));
    }
    place_ = before;
    return first;
  }

  std::uint32_t four_digits() {
    std::uint32_t value = 0;
    for (int i = 0; i < 4; ++i, ++place_) {
      const char digit = place_ < text_.size() ? text_[place_] : '"';
      if (digit >= '0' && digit <= '9') {
        value = value << 4 | static_cast<std::uint32_t>(digit - '0');
      } else if ((digit | 0x20) >= 'a' && (digit | 0x20) <= 'f') {
        value = value << 4 | static_cast<std::uint32_t>((digit | 0x20) - 'a' + 10);
      } else {
        refuse("Invalid \\uXXXX escape");
      }
    }
    return value;
  }

  std::size_t digits_from(std::size_t place) const {
    const std::size_t start = place;
    while (place < text_.size() && text_[place] >= '0' && text_[place] <= '9') ++place;
    return place - start;
  }

  Json number() {
    std::size_t end = place_;
    const auto at = [this](std::size_t place) {
      return place < text_.size() ? text_[place] : ' ';
    };
    if (at(end) == '-') ++end;
    const std::size_t digits = at(end) == '0' ? 1 : digits_from(end);
    if (digits == 0) refuse("Expecting value");
    end += digits;
    bool is_whole = true;
    if (at(end) == '.' && digits_from(end + 1) > 0) {
      end += 1 + digits_from(end + 1);
      is_whole = false;
    }
    if ((at(end) | 0x20) == 'e') {
      const std::size_t sign = at(end + 1) == '+' || at(end + 1) == '-' ? 1 : 0;
      if (const std::size_t found = digits_from(end + 1 + sign)) {
        end += 1 + sign + found;
        is_whole = false;
      }
    }
    std::string shown(text_.substr(place_, end - place_));
    if (is_whole && digits > kMaxDigits) refuse("a whole number has too many digits");
    place_ = end;
    if (!is_whole) return Json(double_of(shown));
    return Json(Whole{shown == "-0" ? "0" : std::move(shown)});
  }

  std::string_view text_;
  std::size_t place_ = 0;
  int depth_ = 0;
};

}  // namespace early_exit::detail
