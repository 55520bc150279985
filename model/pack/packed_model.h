#ifndef CARAVAN_MODEL_PACK_PACKED_MODEL_H_
#define CARAVAN_MODEL_PACK_PACKED_MODEL_H_

// A model as `caravan pack` writes it: config.json, the tokenizer's files, caravan-pack.json and
// the files that it names (docs/packed-format.md).

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/file.h"
#include "model/pack/pack_manifest.h"
#include "model/stored_model.h"

namespace caravan {

/// The fingerprint covers the config and the manifest, and with it the hash of every file.
class PackedModel : public StoredModel {
 public:
  /// Whether `directory` holds a packed model, or what is there of one.
  static bool IsAt(const std::string& directory);

  /// Which of the manifest's files must be there.
  enum class Files { kAll, kPresent };

  /// Reads the manifest, no weights. A pack that was not finished is refused; so is one whose files
  /// are missing or of another size than the manifest says.
  /// With Files::kPresent, files that are missing everywhere are left out, and their tensors with
  /// them: for who needs some layers alone.
  /// mirrors: further directories, on other disks of this machine, with the same manifest and some
  /// or all of the files that it names. These are taken from the first directory that has them,
  /// `directory` before the others; of experts all copies are known (ExpertFile).
  /// Errors: FailedPrecondition - it was not finished; NotFound - a file is missing everywhere;
  ///         InvalidArgument - as ParsePackManifest and CheckMirrors, a tensor in two places, a
  ///         wrong size. Each names the file.
  static absl::StatusOr<std::unique_ptr<PackedModel>> Open(
      const std::string& directory, absl::Span<const std::string> mirrors = {},
      Files files = Files::kAll);

  /// Whether `mirrors` are such directories. Errors: InvalidArgument - one of them holds another
  /// pack or none, or is `directory` or another one of them; NotFound - `directory` holds no pack.
  static absl::Status CheckMirrors(const std::string& directory,
                                   absl::Span<const std::string> mirrors);

  /// Of the files that were not left out.
  const PackManifest& manifest() const { return manifest_; }

  /// Where the first copy of manifest().files[i] lies.
  const std::string& FilePath(size_t i) const { return files_[i]->path(); }

  /// The fingerprint of a pack with these files.
  static uint64_t FingerprintOf(absl::string_view config_json, absl::string_view manifest);

  /// Reads every file and compares its hash and those of its experts; config and text files too
  /// where the manifest has their hashes. `progress` is called now and then with how many bytes are
  /// done; false stops it.
  /// Errors: DataLoss - names the file, and the expert, whose bytes are not those that were packed;
  ///         Cancelled - by `progress`.
  absl::Status CheckHashes(absl::FunctionRef<bool(int64_t done, int64_t total)> progress) const;

  bool is_partial() const override;
  std::vector<std::string> TensorNames() const override;
  const TensorInfo* Find(absl::string_view name) const override;
  absl::Status ReadPart(absl::string_view name, int64_t offset,
                        absl::Span<std::byte> out) const override;
  const ExpertFile* FindExperts(int layer) const override;

 private:
  struct Place {
    TensorInfo info;
    size_t file = 0;
    int64_t offset = 0;
  };
  PackedModel() = default;

  PackManifest manifest_;
  std::vector<std::unique_ptr<ReadableFile>> files_;  // as in the manifest
  absl::flat_hash_map<std::string, Place> places_;
  absl::flat_hash_map<std::string, ExpertFile> expert_files_;  // by PackedExperts::prefix
};

}  // namespace caravan

#endif  // CARAVAN_MODEL_PACK_PACKED_MODEL_H_
