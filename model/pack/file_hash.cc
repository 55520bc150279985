#include "model/pack/file_hash.h"

#include <xxhash.h>

#include "absl/strings/str_format.h"
#include "base/check.h"

namespace caravan {
namespace {

std::string Digits(const XXH128_hash_t& hash) {
  return absl::StrFormat("%016x%016x", hash.high64, hash.low64);
}

}  // namespace

void FileHash::Free::operator()(XXH3_state_s* state) const { XXH3_freeState(state); }

FileHash::FileHash() : state_(XXH3_createState()) {
  CARAVAN_CHECK(state_ != nullptr);
  XXH3_128bits_reset(state_.get());
}

void FileHash::Add(absl::Span<const std::byte> bytes) {
  XXH3_128bits_update(state_.get(), bytes.data(), bytes.size());
}

std::string FileHash::Digest() const { return Digits(XXH3_128bits_digest(state_.get())); }

std::string HashOf(absl::Span<const std::byte> bytes) {
  return Digits(XXH3_128bits(bytes.data(), bytes.size()));
}

}  // namespace caravan
