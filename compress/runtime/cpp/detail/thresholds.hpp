// One threshold per exit, and what it means: an image leaves where gate >= threshold.
#pragma once

#include "../early_exit.hpp"
#include "shown.hpp"

namespace early_exit::detail {

/// Whether one image leaves, compared in float64, as Python does; not-a-number reaches no bar.
inline bool leaves(float gate, double bar) { return static_cast<double>(gate) >= bar; }

inline double checked_threshold(double bar) {
  if (!(0 <= bar && bar <= 1)) {
    throw UserInputError("a threshold is " + shown(bar) + "; expected 0 <= threshold <= 1");
  }
  return bar;
}

/// One threshold an exit, of one for all or one for each.
inline std::vector<double> checked_thresholds(std::vector<double> bars, std::size_t exits) {
  if (bars.size() == 1) bars.assign(exits, bars.front());
  if (bars.size() != exits) {
    throw UserInputError(std::to_string(bars.size()) + " thresholds for " + std::to_string(exits) +
                         " exits; expected one each, or one");
  }
  for (const double bar : bars) checked_threshold(bar);
  return bars;
}

}  // namespace early_exit::detail
