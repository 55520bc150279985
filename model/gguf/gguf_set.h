#ifndef CARAVAN_MODEL_GGUF_GGUF_SET_H_
#define CARAVAN_MODEL_GGUF_GGUF_SET_H_

// A model's GGUF files as one: a single file, or a split set. The files of a set of N are named
// PREFIX-00001-of-0000N.gguf and so on, and each says in its metadata which one it is (split.no,
// from 0) of how many (split.count). What else the metadata say stands in the first, which may hold
// no tensors.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "model/gguf/gguf_file.h"
#include "model/tensor_source.h"

namespace caravan {

/// Whether `path` has the name of a GGUF file.
bool IsGgufPath(absl::string_view path);

/// The paths of all files of the set that `path`, one of them, is named as part of; else `path`
/// alone. Looks at names only.
std::vector<std::string> GgufSetPaths(const std::string& path);

/// Tensors under GGUF's own names. Immutable once open, so thread-safe.
class GgufSet : public TensorSource {
 public:
  /// `path`: the file, or any one of the set.
  /// Errors: NotFound - a file is missing (says which of how many); InvalidArgument - as
  ///         GgufFile::Open; a name that is not what split.no and split.count ask for; files that
  ///         do not agree on them; a tensor that two files have; not as many tensors as
  ///         split.tensors.count says. Each names the file and the key or tensor.
  static absl::StatusOr<std::unique_ptr<GgufSet>> Open(const std::string& path);

  /// The first file's.
  const GgufMetadata& metadata() const { return files_.front()->metadata(); }
  /// The first file's path.
  const std::string& path() const { return files_.front()->path(); }

  /// In ascending order.
  std::vector<std::string> TensorNames() const;

  const TensorInfo* Find(absl::string_view name) const override;
  absl::Status ReadPart(absl::string_view name, int64_t offset,
                        absl::Span<std::byte> out) const override;
  void Prefetch(absl::string_view name, int64_t offset, int64_t size) const override;

  /// The file that holds the tensor. Null: no such tensor.
  const GgufFile* FileOf(absl::string_view name) const;

 private:
  GgufSet() = default;

  std::vector<std::unique_ptr<GgufFile>> files_;  // in order
  absl::flat_hash_map<std::string, const GgufFile*> file_of_;
};

}  // namespace caravan

#endif  // CARAVAN_MODEL_GGUF_GGUF_SET_H_
