#ifndef CARAVAN_MODEL_GGUF_GGUF_FILE_H_
#define CARAVAN_MODEL_GGUF_GGUF_FILE_H_

// One .gguf file, mapped. Format (ggml-org/ggml, docs/gguf.md), little-endian, versions 2 and 3:
//   "GGUF" | u32 version | u64 tensors | u64 pairs | the pairs (gguf_metadata.h) | tensor infos
//   info: string name | u32 dimensions | u64 each, fastest first | u32 type | u64 offset
//   then zeros up to a multiple of general.alignment (32 where that is not given), where the data
//   begin; offsets count from there and are multiples of it.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/file.h"
#include "model/gguf/gguf_foreign_blocks.h"
#include "model/gguf/gguf_metadata.h"
#include "model/mapped_tensors.h"

namespace caravan {

/// Tensors under GGUF's own names, in its own block formats (but for gguf_foreign_blocks.h's, which
/// come as those say), shapes slowest dimension first. Immutable once open, so thread-safe.
class GgufFile : public MappedTensors {
 public:
  /// Errors: NotFound - no such file; InvalidArgument - not GGUF, of another version or byte order,
  ///         truncated; metadata as GgufMetadata::Parse; a general.alignment that is no multiple of
  ///         8 up to 65536; a tensor of a repeated name, or one that is empty, longer than 64 bytes
  ///         or not UTF-8, of no or more than 4 dimensions, of a type that Caravan does not run,
  ///         with rows that are no whole blocks, with an offset that is not aligned, or whose bytes
  ///         overlap another's or run past the end. Each names the file and the key or tensor.
  static absl::StatusOr<std::unique_ptr<GgufFile>> Open(const std::string& path);

  const GgufMetadata& metadata() const { return metadata_; }

  absl::Status ReadPart(absl::string_view name, int64_t offset,
                        absl::Span<std::byte> out) const override;
  void Prefetch(absl::string_view name, int64_t offset, int64_t size) const override;

 private:
  GgufFile(std::unique_ptr<MappedFile> file, GgufMetadata metadata)
      : MappedTensors(std::move(file)), metadata_(std::move(metadata)) {}

  /// Null: the tensor's bytes are what Find says.
  const GgufForeignBlocks* ForeignBlocksOf(absl::string_view name) const;

  const GgufMetadata metadata_;  // borrows the mapped bytes
  absl::flat_hash_map<std::string, const GgufForeignBlocks*> foreign_;
};

}  // namespace caravan

#endif  // CARAVAN_MODEL_GGUF_GGUF_FILE_H_
