#ifndef CARAVAN_MODEL_MAPPED_TENSORS_H_
#define CARAVAN_MODEL_MAPPED_TENSORS_H_

// What the formats that keep tensors in one mapped file have in common: a name for each run of its
// bytes. Knows no format.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/file.h"
#include "model/tensor_source.h"

namespace caravan {

/// Immutable once its subclass has opened it, so thread-safe.
class MappedTensors : public TensorSource {
 public:
  const std::string& path() const { return file_->path(); }

  /// In ascending order.
  std::vector<std::string> TensorNames() const;

  const TensorInfo* Find(absl::string_view name) const override;
  /// Maps nothing in.
  absl::Status ReadPart(absl::string_view name, int64_t offset,
                        absl::Span<std::byte> out) const override;
  void Prefetch(absl::string_view name, int64_t offset, int64_t size) const override;

  /// The tensor's mapped bytes, as the file has them; not aligned. REQUIRES: Find(name) is not
  /// null.
  absl::Span<const std::byte> Bytes(absl::string_view name) const;

  /// Where the tensor's bytes begin in the file. REQUIRES: Find(name) is not null.
  int64_t Offset(absl::string_view name) const;

 protected:
  explicit MappedTensors(std::unique_ptr<MappedFile> file) : file_(std::move(file)) {}

  /// False, and nothing changes, when the name is taken. `offset` counts from the file's begin.
  /// A subclass that says of a tensor something else than what lies in the file reads it itself.
  /// REQUIRES: the tensor's bytes lie within the file.
  bool Add(std::string name, TensorInfo info, int64_t offset, int64_t num_bytes);

  const MappedFile& file() const { return *file_; }

 private:
  struct Entry {
    TensorInfo info;
    int64_t offset = 0;
    int64_t num_bytes = 0;  // in the file
  };
  const Entry& At(absl::string_view name) const;

  const std::unique_ptr<MappedFile> file_;
  absl::flat_hash_map<std::string, Entry> tensors_;
};

}  // namespace caravan

#endif  // CARAVAN_MODEL_MAPPED_TENSORS_H_
