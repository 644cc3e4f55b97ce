// Values in messages, as Python's repr shows them, so that both say the same of the same file.
#pragma once

#include <cmath>
#include <cstdlib>
#include <iomanip>
#include <type_traits>

#include "json.hpp"

namespace early_exit::detail {

/// Whether a character can be printed, by its number in Unicode: no control, no format character,
/// no half of a surrogate pair, none of private use, no space but the plain one. Which numbers are
/// given to a character changes with the year, so one that is not yet given counts as printable.
inline bool is_printable(std::uint32_t code) {
  constexpr std::uint32_t unprintable[][2] = {
      {0x0, 0x1F},         {0x7F, 0xA0},       {0xAD, 0xAD},       {0x600, 0x605},
      {0x61C, 0x61C},      {0x6DD, 0x6DD},     {0x70F, 0x70F},     {0x890, 0x891},
      {0x8E2, 0x8E2},      {0x1680, 0x1680},   {0x180E, 0x180E},   {0x2000, 0x200F},
      {0x2028, 0x202F},    {0x205F, 0x206F},   {0x3000, 0x3000},   {0xD800, 0xF8FF},
      {0xFEFF, 0xFEFF},    {0xFFF0, 0xFFFB},   {0xFFFE, 0xFFFF},   {0x110BD, 0x110BD},
      {0x110CD, 0x110CD},  {0x13430, 0x1343F}, {0x1BCA0, 0x1BCA3}, {0x1D173, 0x1D17A},
      {0xE0000, 0xE00FF},  {0xE01F0, 0x10FFFF}};
  for (const auto& range : unprintable) {
    if (code >= range[0] && code <= range[1]) return false;
  }
  return true;
}

inline bool is_printable(std::string_view text) {
  for (std::size_t place = 0; place < text.size();) {
    if (!is_printable(next_character(text, place))) return false;
  }
  return true;
}

/// Characters of a text, which has more bytes.
inline std::size_t length_of(std::string_view text) {
  std::size_t count = 0;
  for (const char byte : text) count += (byte & 0xC0) != 0x80;
  return count;
}

/// The first characters of a text.
inline std::string cut(std::string_view text, std::size_t characters) {
  std::size_t place = 0;
  for (; place < text.size(); ++place) {
    if ((text[place] & 0xC0) != 0x80 && characters-- == 0) break;
  }
  return std::string(text.substr(0, place));
}

/// The shortest decimal number that is read as this one, in Python's layout.
inline std::string shown(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  std::string digits;
  for (int precision = 0; precision <= 16; ++precision) {
    std::ostringstream stream;
    stream.imbue(std::locale::classic());
    stream << std::scientific << std::setprecision(precision) << value;
    digits = stream.str();
    if (double_of(digits) == value) break;
  }
  const std::size_t e = digits.find('e');
  const int exponent = std::stoi(digits.substr(e + 1));
  std::string sign = digits.front() == '-' ? "-" : "";
  std::string mantissa = digits.substr(sign.size(), e - sign.size());
  if (mantissa.size() > 1) mantissa.erase(1, 1);  // the point
  const int count = static_cast<int>(mantissa.size());
  if (exponent < -4 || exponent >= 16) {
    if (count > 1) mantissa.insert(1, ".");
    std::string power = std::to_string(std::abs(exponent));
    if (power.size() < 2) power.insert(0, "0");
    return sign + mantissa + (exponent < 0 ? "e-" : "e+") + power;
  }
  if (exponent < 0) return sign + "0." + std::string(-exponent - 1, '0') + mantissa;
  if (count <= exponent + 1) return sign + mantissa + std::string(exponent + 1 - count, '0') + ".0";
  return sign + mantissa.insert(static_cast<std::size_t>(exponent) + 1, ".");
}

inline void append_escape(std::string& found, std::uint32_t code) {
  constexpr char hex[] = "0123456789abcdef";
  const int digits = code < 0x100 ? 2 : code < 0x10000 ? 4 : 8;
  found += code < 0x100 ? "\\x" : code < 0x10000 ? "\\u" : "\\U";
  for (int shift = 4 * (digits - 1); shift >= 0; shift -= 4) found += hex[code >> shift & 0xF];
}

/// Append a text in quotes; one much longer than `most` characters is not read to the end.
inline void append_quoted(std::string& found, std::string_view text, std::size_t most) {
  const bool has_quote = text.find('\'') != std::string_view::npos;
  const char mark = has_quote && text.find('"') == std::string_view::npos ? '"' : '\'';
  found += mark;
  for (std::size_t place = 0, count = 0; place < text.size() && count <= most; ++count) {
    const std::uint32_t code = next_character(text, place);
    constexpr std::string_view plain = "\t\n\r\\", letters = "tnr\\";
    const std::size_t at = code < 0x80 ? plain.find(static_cast<char>(code)) : plain.npos;
    if (at != plain.npos) {
      (found += '\\') += letters[at];
    } else if (code == static_cast<std::uint32_t>(mark)) {
      (found += '\\') += mark;
    } else if (is_printable(code)) {
      append_utf8(found, code);
    } else {
      append_escape(found, code);
    }
  }
  found += mark;
}

inline void append_shown(std::string& found, const Json& value, std::size_t most);

template <typename Items, typename Append>
void append_items(std::string& found, const Items& items, std::size_t most, Append append) {
  bool is_first = true;
  for (const auto& item : items) {
    if (found.size() > 4 * most) return;  // of at most four bytes a character
    if (!is_first) found += ", ";
    is_first = false;
    append(item);
  }
}

inline void append_shown(std::string& found, const Json& value, std::size_t most) {
  if (value.is_null()) {
    found += "None";
  } else if (value.is<bool>()) {
    found += value.as<bool>() ? "True" : "False";
  } else if (value.is<Whole>()) {
    found += value.as<Whole>().digits;
  } else if (value.is<double>()) {
    found += shown(value.as<double>());
  } else if (value.is<std::string>()) {
    append_quoted(found, value.as<std::string>(), most);
  } else if (value.is<List>()) {
    found += '[';
    append_items(found, value.as<List>(), most,
                 [&](const Json& item) { append_shown(found, item, most); });
    found += ']';
  } else {
    found += '{';
    append_items(found, value.as<Object>(), most, [&](const Member& member) {
      append_quoted(found, member.key, most);
      found += ": ";
      append_shown(found, member.value, most);
    });
    found += '}';
  }
}

/// The first characters of what Python's repr says of a value.
inline std::string shown(const Json& value, std::size_t most = 60) {
  std::string found;
  append_shown(found, value, most);
  return cut(found, most);
}

/// The name of a value's kind in Python.
inline const char* kind_of(const Json& value) {
  constexpr const char* kinds[] = {"NoneType", "bool", "int", "float", "str", "list", "dict"};
  return kinds[value.content.index()];
}

inline std::string in_quotes(std::string_view text, std::size_t most = 60) {
  std::string found;
  append_quoted(found, text, most);
  return cut(found, most);
}

template <typename Number>
std::string shown(const std::vector<Number>& numbers) {
  std::string found = "[";
  append_items(found, numbers, 1000, [&](Number number) {
    if constexpr (std::is_floating_point_v<Number>) {
      found += shown(number);
    } else {
      found += std::to_string(number);
    }
  });
  return found + "]";
}

inline std::string joined(const std::vector<std::string>& texts, std::size_t most = 200) {
  std::string found;
  append_items(found, texts, most, [&](const std::string& text) { found += text; });
  return cut(found, most);
}

}  // namespace early_exit::detail
