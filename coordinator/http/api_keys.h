#ifndef CARAVAN_COORDINATOR_HTTP_API_KEYS_H_
#define CARAVAN_COORDINATOR_HTTP_API_KEYS_H_

// The keys that clients must show.

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace caravan {

/// Immutable, thread-safe. Keeps hashes only.
class ApiKeys {
 public:
  /// One key a line; blank lines and lines that begin with # do not count.
  /// Errors: as ReadFile; InvalidArgument - no key in it, or one with a space or control
  ///         character (names path and line, never the key).
  static absl::StatusOr<ApiKeys> Load(const std::string& path);

  /// Whether the value of an Authorization header is "Bearer KEY" with one of the keys. Takes a
  /// time that does not depend on the keys' bytes.
  bool Authorizes(absl::string_view authorization) const;

 private:
  using Hash = std::array<uint8_t, 32>;
  std::vector<Hash> hashes_;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_HTTP_API_KEYS_H_
