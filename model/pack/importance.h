#ifndef CARAVAN_MODEL_PACK_IMPORTANCE_H_
#define CARAVAN_MODEL_PACK_IMPORTANCE_H_

// What the error of each column of each matrix costs: the mean square of what it is multiplied
// with, over some text. `caravan calibrate` writes it, `caravan pack --imatrix` reads it.
//
// The file is safetensors (docs/packed-format.md): an f32 vector [cols] for each matrix, by the
// matrix's name, and under __metadata__ in how many rows each was seen.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace caravan {

/// Immutable once read, so thread-safe.
class Importance {
 public:
  struct Columns {
    std::vector<float> mean_square;  // [cols]
    int64_t count = 0;               // rows that it is the mean of; 0: nothing is known
  };

  /// Errors: as SafetensorsFile::Open; InvalidArgument - a tensor that is no f32 vector, or has a
  ///         value that is negative or not finite, or no count; names the file and the tensor.
  static absl::StatusOr<Importance> Read(const std::string& path);

  /// The same file, whatever the order of the Sets. Errors: as WritePackFile.
  absl::Status Write(const std::string& path) const;

  void Set(std::string name, Columns columns) { columns_[std::move(name)] = std::move(columns); }
  /// Null: there is none.
  const Columns* Find(absl::string_view name) const;

  /// Where it was read from; empty: nowhere.
  const std::string& path() const { return path_; }
  /// Of all that it holds.
  uint64_t fingerprint() const;

 private:
  std::vector<std::string> Names() const;  // ascending

  std::string path_;
  absl::flat_hash_map<std::string, Columns> columns_;
};

}  // namespace caravan

#endif  // CARAVAN_MODEL_PACK_IMPORTANCE_H_
