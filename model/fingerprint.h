#ifndef CARAVAN_MODEL_FINGERPRINT_H_
#define CARAVAN_MODEL_FINGERPRINT_H_

// A short name for what a model's files say, the same on every machine.

#include <cstdint>

#include "absl/strings/string_view.h"
#include "base/dtype.h"
#include "model/tensor_source.h"

namespace caravan {

/// FNV-1a of 64 bits (Fowler, Noll, Vo), over bytes whose order does not depend on the machine. Not
/// thread-safe.
class Fingerprint {
 public:
  /// The length goes first, so that neighbours cannot trade bytes.
  void AddText(absl::string_view text) {
    AddInt(static_cast<int64_t>(text.size()));
    for (const char c : text) AddByte(static_cast<uint8_t>(c));
  }
  void AddInt(int64_t value) {
    for (int i = 0; i < 8; ++i) {
      AddByte(static_cast<uint8_t>(static_cast<uint64_t>(value) >> (8 * i)));
    }
  }
  /// All but its bytes.
  void AddTensor(absl::string_view name, const TensorInfo& info) {
    AddText(name);
    AddText(DTypeName(info.dtype));
    AddInt(static_cast<int64_t>(info.shape.size()));
    for (const int64_t dim : info.shape) AddInt(dim);
  }
  uint64_t value() const { return hash_; }

 private:
  void AddByte(uint8_t byte) { hash_ = (hash_ ^ byte) * 0x100000001b3; }
  uint64_t hash_ = 0xcbf29ce484222325;
};

}  // namespace caravan

#endif  // CARAVAN_MODEL_FINGERPRINT_H_
