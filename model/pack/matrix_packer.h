#ifndef CARAVAN_MODEL_PACK_MATRIX_PACKER_H_
#define CARAVAN_MODEL_PACK_MATRIX_PACKER_H_

// One tensor from the form that it has in a checkpoint into the form that it gets in a pack.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "base/thread_pool.h"
#include "model/pack/importance.h"
#include "model/tensor_source.h"

namespace caravan {

/// Used by one thread, which its pool helps, also with reading. Memory: a few megabytes and one row
/// tile (128 rows for FP8) a thread; a few megabytes ahead are asked for in the page cache.
class MatrixPacker {
 public:
  using Sink = absl::FunctionRef<absl::Status(absl::Span<const std::byte>)>;

  /// All outlive the object. `importance`: null, or what columns weigh where they are quantized; of
  /// tensors that it does not know, or of which it saw no row, they weigh the same.
  MatrixPacker(const TensorSource* source, const Importance* importance, ThreadPool* pool)
      : source_(source), importance_(importance), pool_(pool) {}

  /// Gives `sink` the bytes of tensor `name` as `packed` describes them, in order, a piece at a
  /// time; what it returns ends the packing unless OK.
  /// REQUIRES: the source has the tensor, row-major, in packed's shape; or it has not, and `name`
  ///           is that of the scales of the tensor of the call before, which became FP8. The
  ///           importance has as many columns for it, if it has any.
  /// Errors: InvalidArgument - a weight is not finite, or too large for F16, in a format that it
  ///         has to be converted to (block formats take the nearest value that they hold, see
  ///         QuantizeRow); DataLoss - from the source; the sink's. Each but the sink's names the
  ///         tensor.
  absl::Status Pack(const std::string& name, const TensorInfo& packed, Sink sink);

 private:
  absl::Status PackStored(const std::string& name, const TensorInfo& packed, Sink sink);

  const TensorSource* const source_;
  const Importance* const importance_;
  ThreadPool* const pool_;
  std::vector<std::byte> packed_;
  std::vector<float> scales_;         // of a matrix that is FP8
  std::vector<float> packed_scales_;  // of one that becomes it:
  std::string scales_of_;             // this one, if all of it was converted
};

}  // namespace caravan

#endif  // CARAVAN_MODEL_PACK_MATRIX_PACKER_H_
