#ifndef CARAVAN_MODEL_PACK_PACK_MANIFEST_H_
#define CARAVAN_MODEL_PACK_PACK_MANIFEST_H_

// caravan-pack.json: which files a packed model has and what lies where in them. A public disk
// format: docs/packed-format.md describes it.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/tensor_source.h"

namespace caravan {

inline constexpr char kPackManifestName[] = "caravan-pack.json";
/// What there is of a pack that is not finished: the same, of the files that are.
inline constexpr char kUnfinishedPackName[] = "caravan-pack.unfinished.json";

/// Of either.
inline constexpr int64_t kMaxPackManifestBytes = int64_t{1} << 28;

/// Where an expert begins in its file: what O_DIRECT asks for.
inline constexpr int64_t kExpertAlignment = 4096;
/// Where a tensor begins in its file, or in its expert.
inline constexpr int64_t kTensorAlignment = 64;

struct PackedTensor {
  std::string name;
  TensorInfo info;
  int64_t offset = 0;  // from the beginning of its file, or of its expert's run
};

/// The routed experts of a layer, one run of bytes each, in ascending order.
struct PackedExperts {
  std::string prefix;  // expert e's tensors are named prefix + e + "." + name
  int64_t count = 0;
  int64_t offset = 0;                 // of expert 0's run; a multiple of kExpertAlignment
  int64_t stride = 0;                 // from run to run; likewise
  std::vector<PackedTensor> tensors;  // of each
  std::vector<std::string> hashes;    // by expert: of its run, as PackedFile::hash
};

/// A layer's routed experts in their file on this machine's disk.
struct ExpertFile {
  std::string path;
  PackedExperts experts;
  std::vector<std::string> mirrors = {};  // paths of further copies of the file
};

struct PackedFile {
  std::string name;  // in the manifest's directory
  int64_t bytes = 0;
  std::string hash;  // XXH3 of 128 bits over the whole file, 32 hexadecimal digits
  std::vector<PackedTensor> tensors;
  std::optional<PackedExperts> experts;
};

/// A file of the config or of the text side.
struct PackedText {
  std::string name;  // in the manifest's directory
  std::string hash;  // as PackedFile::hash
};

/// What an unfinished pack is made of, so that it is not gone on with from something else.
struct PackOrigin {
  std::string path;         // of the source; absolute, where it lies on a disk
  std::string fingerprint;  // of the source
  std::string options;      // all that changes the bytes, as people read it
};

struct PackManifest {
  std::vector<PackedFile> files;
  std::vector<PackedText> texts = {};  // of a finished pack; none: their hashes are not known
  /// Of unfinished packs only: where a pack was made shows nowhere in it.
  std::optional<PackOrigin> origin = {};
};

std::string PackManifestToJson(const PackManifest& manifest);

/// Checks that every tensor lies aligned within its file, apart from the others, and that there
/// are no more of them than memory has room for.
/// Errors: InvalidArgument - not a manifest, or of another version; names `origin` and the field or
///         the tensor.
absl::StatusOr<PackManifest> ParsePackManifest(absl::string_view text, absl::string_view origin);

/// The names and places in their file of one expert's tensors.
std::vector<PackedTensor> TensorsOfExpert(const PackedExperts& experts, int64_t expert);

/// The names and places of all tensors of the file, those of its experts included.
std::vector<PackedTensor> AllTensors(const PackedFile& file);

}  // namespace caravan

#endif  // CARAVAN_MODEL_PACK_PACK_MANIFEST_H_
