#include "model/pack/file_hash.h"

#include <xxhash.h>

#include "absl/strings/str_format.h"
#include "base/check.h"

namespace caravan {

void FileHash::Free::operator()(XXH3_state_s* state) const { XXH3_freeState(state); }

FileHash::FileHash() : state_(XXH3_createState()) {
  CARAVAN_CHECK(state_ != nullptr);
  XXH3_128bits_reset(state_.get());
}

void FileHash::Add(absl::Span<const std::byte> bytes) {
  XXH3_128bits_update(state_.get(), bytes.data(), bytes.size());
}

std::string FileHash::Digest() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(state_.get());
  return absl::StrFormat("%016x%016x", hash.high64, hash.low64);
}

}  // namespace caravan
