// How pixels become a network input, read from a manifest and applied.
#pragma once

#include <algorithm>
#include <tuple>

#include "../early_exit.hpp"
#include "checks.hpp"

namespace early_exit::detail {

constexpr std::int64_t kLargestSide = 1 << 14;  // pixels
constexpr std::size_t kMostChannels = 1 << 10;
constexpr std::size_t kShortCharacters = 120;
constexpr std::size_t kWholeMessage = 20000;  // where Python does not cut what it shows

inline std::string shortened(const Json& value) {
  const std::string found = shown(value, kShortCharacters + 1);
  return length_of(found) <= kShortCharacters ? found : cut(found, kShortCharacters) + "…";
}

inline std::int64_t pixels(const Json& value) {
  if (!value.is<Whole>()) {
    throw UserInputError("a size in pixels is " + shortened(value) + "; expected a whole number");
  }
  return saturated(value.as<Whole>());
}

inline std::pair<std::int64_t, std::int64_t> side(const Json& value) {
  if (!value.is<List>()) return {pixels(value), pixels(value)};
  const List& sides = value.as<List>();
  if (sides.size() != 2) {
    throw UserInputError("image size is " + shortened(value) +
                         "; expected a side, or height and width");
  }
  const std::int64_t height = pixels(sides[0]);
  return {height, pixels(sides[1])};
}

/// Values of mean or std; a text is none here, where Python reads the number that it spells.
inline std::vector<double> channel_values(const Json& all, const Json& value) {
  const auto refuse = [&all](const std::string& why) {
    throw UserInputError("preprocessing is " + shortened(all) +
                         "; expected numbers for sizes, mean and std (" + why + ")");
  };
  if (!value.is<List>()) refuse(shown(value) + " in place of a list");
  std::vector<double> found;
  for (const Json& item : value.as<List>()) {
    if (item.is<bool>()) {
      found.push_back(item.as<bool>() ? 1 : 0);
    } else if (!item.is<double>() && !item.is<Whole>()) {
      refuse(shown(item) + " in place of a number");
    } else {
      const double number = item.is<double>() ? item.as<double>()
                                              : double_of(item.as<Whole>().digits);
      if (item.is<Whole>() && std::isinf(number)) refuse("int too large to convert to float");
      found.push_back(number);
    }
  }
  return found;
}

inline std::string as_tuple(const std::vector<double>& values) {
  std::string found = shown(values);
  found.front() = '(';
  found.back() = ')';
  if (values.size() == 1) found.insert(found.size() - 1, ",");
  return length_of(found) <= kShortCharacters ? found : cut(found, kShortCharacters) + "…";
}

inline void check_fields(const Json& value) {
  const std::vector<std::string> required = {"image_size", "mean", "resize", "resize_size", "std"};
  std::vector<std::string> known = required;
  known.emplace_back("untouched_at_size");
  const auto listed = [](std::vector<std::string> names) {
    std::sort(names.begin(), names.end());
    List quoted;
    for (std::string& each : names) quoted.emplace_back(std::move(each));
    return shown(Json(std::move(quoted)), 10000);
  };
  if (!value.is<Object>()) {
    throw UserInputError("preprocessing is a " + std::string(kind_of(value)) +
                         "; expected the fields " + listed(known));
  }
  std::vector<std::string> found;
  for (const Member& each : value.as<Object>()) found.push_back(each.key);
  const auto is_known = [&known](const std::string& key) {
    return std::find(known.begin(), known.end(), key) != known.end();
  };
  const auto is_given = [&value](const std::string& key) { return value.find(key) != nullptr; };
  if (!std::all_of(found.begin(), found.end(), is_known) ||
      !std::all_of(required.begin(), required.end(), is_given)) {
    throw UserInputError("preprocessing has the fields " + listed(found) + "; expected " +
                         listed(known));
  }
}

inline bool is_true(const Json& value) {
  if (value.is<bool>()) return value.as<bool>();
  if (value.is<Whole>()) return value.as<Whole>().digits != "0";
  if (value.is<double>()) return value.as<double>() != 0;
  if (value.is<std::string>()) return !value.as<std::string>().empty();
  if (value.is<List>()) return !value.as<List>().empty();
  return value.is<Object>() && !value.as<Object>().empty();
}

inline void check_ranges(const Preprocessing& found, const Json& value) {
  const auto [shorter, longer] = std::minmax(found.height, found.width);
  if (shorter < 1 || longer > kLargestSide) {
    const Json& given = *value.find("image_size");
    std::string size = shown(given, kWholeMessage);
    if (given.is<List>() && found.height == found.width) {
      size = shown(given.as<List>().front(), kWholeMessage);
    } else if (given.is<List>()) {
      size.front() = '(';
      size.back() = ')';
    }
    throw UserInputError("image size is " + size + "; expected at least 1 and at most " +
                         std::to_string(kLargestSide) + " pixels a side");
  }
  if (found.resize != "pillow-bicubic" && found.resize != "pillow-bilinear" &&
      found.resize != "crop" && found.resize != "none") {
    throw UserInputError("resize is " + in_quotes(found.resize, kWholeMessage) +
                         "; expected one of pillow-bicubic, pillow-bilinear, crop, none");
  }
  if (found.resize_size < shorter || found.resize_size > kLargestSide) {
    throw UserInputError("resize size is " + shown(*value.find("resize_size"), kWholeMessage) +
                         "; expected at least the image size " + std::to_string(shorter) +
                         ", which is cut out of the resized picture, and at most " +
                         std::to_string(kLargestSide));
  }
  const auto is_finite = [](double each) { return std::isfinite(each); };
  const bool fits = !found.mean.empty() && found.mean.size() == found.std.size() &&
                    found.std.size() <= kMostChannels;
  if (!fits || !std::all_of(found.mean.begin(), found.mean.end(), is_finite) ||
      !std::all_of(found.std.begin(), found.std.end(),
                   [&](double each) { return is_finite(each) && each > 0; })) {
    throw UserInputError("mean is " + as_tuple(found.mean) + " and std is " + as_tuple(found.std) +
                         "; expected one finite number a channel in each, with std above 0");
  }
}

/// Rebuild what a manifest says. UserInputError: a field is missing, unknown, or out of range.
inline Preprocessing preprocessing_of(const Json& value) {
  check_fields(value);
  Preprocessing found;
  const Json& resize = *value.find("resize");
  found.resize = resize.is<std::string>() ? resize.as<std::string>() : shown(resize, kWholeMessage);
  found.resize_size = pixels(*value.find("resize_size"));
  found.mean = channel_values(value, *value.find("mean"));
  found.std = channel_values(value, *value.find("std"));
  const Json* untouched = value.find("untouched_at_size");
  found.untouched_at_size = untouched != nullptr && is_true(*untouched);
  std::tie(found.height, found.width) = side(*value.find("image_size"));
  check_ranges(found, value);
  return found;
}

/// Normalise pixels (C, H, W) of one image: the very values that numpy gets.
inline void normalize(const Preprocessing& how, const std::uint8_t* pixels, float* image) {
  const std::size_t area = static_cast<std::size_t>(how.height * how.width);
  for (std::size_t channel = 0; channel < how.mean.size(); ++channel) {
    const float mean = static_cast<float>(how.mean[channel]);
    const float std = static_cast<float>(how.std[channel]);
    for (std::size_t i = 0; i < area; ++i) {
      *image++ = (static_cast<float>(*pixels++) / 255.0f - mean) / std;
    }
  }
}

}  // namespace early_exit::detail

namespace early_exit {

bool Preprocessing::leaves_its_size() const {
  return untouched_at_size || resize == "crop" || resize == "none" ||
         resize_size == std::min(height, width);
}

}  // namespace early_exit
