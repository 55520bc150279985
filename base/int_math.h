#ifndef CARAVAN_BASE_INT_MATH_H_
#define CARAVAN_BASE_INT_MATH_H_

// Arithmetic on sizes. REQUIRES everywhere: value >= 0, unit > 0, and room for value + unit.

#include <concepts>

namespace caravan {

/// How many units cover `value`.
template <std::integral T>
constexpr T CeilDiv(T value, T unit) {
  return (value + unit - 1) / unit;
}

/// The least multiple of `unit` that is not below `value`.
template <std::integral T>
constexpr T RoundUp(T value, T unit) {
  return CeilDiv(value, unit) * unit;
}

}  // namespace caravan

#endif  // CARAVAN_BASE_INT_MATH_H_
