#ifndef CARAVAN_BASE_BYTE_SIZE_H_
#define CARAVAN_BASE_BYTE_SIZE_H_

// Sizes as people write them.

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace caravan {

/// "24GiB", "1.5 GB", "4096", "512KiB" in bytes. Units: B, kB/KB, MB, GB, TB (powers of 1000), KiB,
/// MiB, GiB, TiB (powers of 1024); case does not matter; none means bytes.
/// Errors: InvalidArgument - not of this form, negative, or past 2^63.
absl::StatusOr<int64_t> ParseByteSize(absl::string_view text);

/// "11.2 GiB", "640 B": three significant digits in the largest unit of 1024 that fits.
std::string FormatByteSize(int64_t bytes);

}  // namespace caravan

#endif  // CARAVAN_BASE_BYTE_SIZE_H_
