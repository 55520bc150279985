#ifndef CARAVAN_TESTS_SUPPORT_SANITIZED_H_
#define CARAVAN_TESTS_SUPPORT_SANITIZED_H_

namespace caravan {

/// Whether a sanitizer watches: everything takes a multiple of its time, and its shadow memory
/// counts as the process's.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace caravan

#endif  // CARAVAN_TESTS_SUPPORT_SANITIZED_H_
