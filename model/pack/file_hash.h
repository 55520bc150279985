#ifndef CARAVAN_MODEL_PACK_FILE_HASH_H_
#define CARAVAN_MODEL_PACK_FILE_HASH_H_

// The hash of a packed file, or of an expert in it: XXH3 of 128 bits. It finds what disks and
// networks break, faster than either delivers; it is no defence against somebody who wants to
// deceive.

#include <cstddef>
#include <memory>
#include <string>

#include "absl/types/span.h"

struct XXH3_state_s;

namespace caravan {

/// Not thread-safe.
class FileHash {
 public:
  FileHash();
  /// In order.
  void Add(absl::Span<const std::byte> bytes);
  /// Of what was added so far: 32 hexadecimal digits.
  std::string Digest() const;

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const;
  };
  std::unique_ptr<XXH3_state_s, Free> state_;
};

/// Of bytes that are there as a whole, as Digest.
std::string HashOf(absl::Span<const std::byte> bytes);

}  // namespace caravan

#endif  // CARAVAN_MODEL_PACK_FILE_HASH_H_
