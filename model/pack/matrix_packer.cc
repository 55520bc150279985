#include "model/pack/matrix_packer.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/mutex.h"
#include "base/status_macros.h"
#include "kernels/quant/dequantize.h"
#include "kernels/quant/quantize.h"
#include "kernels/tiled/tile_layout.h"
#include "model/tensor_table.h"

namespace caravan {
namespace {

// Of the source, converted at a time.
constexpr int64_t kPieceBytes = int64_t{8} << 20;

/// What a tensor becomes.
struct Conversion {
  const TensorSource* source;
  const std::string* name;
  const TensorInfo* stored;
  const TensorInfo* packed;
  int64_t cols;
  const float* scales;      // of the whole matrix, or null
  const float* importance;  // [cols], or null
};

/// Row `row` of the tensor, `stored`, in a packed format that it has not yet. `values` is scratch
/// of [cols].
absl::Status ConvertRow(const Conversion& tensor, int64_t row, const std::byte* stored,
                        float* values, std::byte* out) {
  const DType to = tensor.packed->dtype;
  DequantizeRow(tensor.stored->dtype, stored, tensor.cols, values);
  if (tensor.scales != nullptr) {
    const float* const scales = tensor.scales + row / kFp8BlockSize * Fp8Blocks(tensor.cols);
    for (int64_t col = 0; col < tensor.cols; ++col) values[col] *= scales[col / kFp8BlockSize];
  }
  switch (to) {
    case DType::kF32:
      std::memcpy(out, values, static_cast<size_t>(tensor.cols) * sizeof(float));
      return absl::OkStatus();
    case DType::kF16:
    case DType::kBF16:
      for (int64_t col = 0; col < tensor.cols; ++col) {
        const uint16_t bits =
            to == DType::kF16 ? FloatToFloat16(values[col]) : FloatToBFloat16(values[col]);
        if (to == DType::kF16 && (bits & 0x7c00) == 0x7c00) {
          return absl::InvalidArgumentError(
              absl::StrCat("value ", col, " is ", values[col], ", which F16 does not hold"));
        }
        std::memcpy(out + 2 * col, &bits, 2);
      }
      return absl::OkStatus();
    default:
      return QuantizeRow(to, values, tensor.cols, tensor.importance, out);
  }
}

/// Reads rows [begin, end) of the tensor and writes them to `out` in the packed layout.
/// REQUIRES: begin is a tile's first row.
absl::Status ConvertRows(const Conversion& tensor, int64_t begin, int64_t end, std::byte* out) {
  const DType from = tensor.stored->dtype;
  const DType to = tensor.packed->dtype;
  const int64_t stored_row = DTypeBytes(from, tensor.cols);
  const int64_t packed_row = DTypeBytes(to, tensor.cols);
  const bool tiled = tensor.packed->layout == MatrixLayout::kTiled16;
  if (from == to && !tiled) {
    return tensor.source->ReadPart(
        *tensor.name, begin * stored_row,
        absl::MakeSpan(out, static_cast<size_t>((end - begin) * stored_row)));
  }
  std::vector<std::byte> stored(static_cast<size_t>((end - begin) * stored_row));
  CARAVAN_RETURN_IF_ERROR(
      tensor.source->ReadPart(*tensor.name, begin * stored_row, absl::MakeSpan(stored)));
  if (from == to) {
    TileMatrix(to, end - begin, tensor.cols, stored.data(), out);
    return absl::OkStatus();
  }
  std::vector<float> values(static_cast<size_t>(tensor.cols));
  std::vector<std::byte> row_major(tiled ? static_cast<size_t>((end - begin) * packed_row) : 0);
  std::byte* const rows = tiled ? row_major.data() : out;
  for (int64_t row = begin; row < end; ++row) {
    const absl::Status converted =
        ConvertRow(tensor, row, stored.data() + (row - begin) * stored_row, values.data(),
                   rows + (row - begin) * packed_row);
    if (!converted.ok()) {
      return absl::DataLossError(absl::StrCat("row ", row, ": ", converted.message()));
    }
  }
  if (tiled) TileMatrix(to, end - begin, tensor.cols, rows, out);
  return absl::OkStatus();
}

}  // namespace

absl::Status MatrixPacker::Pack(const std::string& name, const TensorInfo& packed,
                                absl::FunctionRef<absl::Status(absl::Span<const std::byte>)> sink) {
  const TensorInfo& stored = *source_->Find(name);
  const int64_t rows = packed.shape.size() == 1 ? 1 : packed.shape[0];
  const int64_t cols = packed.shape.back();
  const TensorInfo* const scale = source_->Find(ScaleName(name));
  if (scale != nullptr && stored.dtype != packed.dtype) {
    scales_.resize(static_cast<size_t>(scale->num_elements()));
    CARAVAN_RETURN_IF_ERROR(Annotate(
        source_->Read(ScaleName(name), absl::MakeSpan(reinterpret_cast<std::byte*>(scales_.data()),
                                                      scales_.size() * sizeof(float))),
        ScaleName(name)));
  }
  const int64_t stored_row = DTypeBytes(stored.dtype, cols);
  const int64_t packed_row = DTypeBytes(packed.dtype, cols);
  const int64_t piece_rows = std::max<int64_t>(1, kPieceBytes / stored_row / kTileRows) * kTileRows;
  Conversion tensor = {source_, &name, &stored, &packed, cols, nullptr, nullptr};
  const Importance::Columns* const columns =
      importance_ == nullptr ? nullptr : importance_->Find(name);
  if (columns != nullptr && columns->count > 0) tensor.importance = columns->mean_square.data();
  if (scale != nullptr && stored.dtype != packed.dtype) tensor.scales = scales_.data();
  for (int64_t first_row = 0; first_row < rows; first_row += piece_rows) {
    const int64_t num_rows = std::min(piece_rows, rows - first_row);
    // This piece and the next, so that threads need not wait for what they read.
    source_->Prefetch(name, first_row * stored_row,
                      std::min(2 * piece_rows, rows - first_row) * stored_row);
    const int64_t whole_rows =
        packed.layout == MatrixLayout::kTiled16 ? Tiles(num_rows) * kTileRows : num_rows;
    packed_.resize(static_cast<size_t>(whole_rows * packed_row));
    Mutex mu;
    absl::Status converted;
    pool_->ParallelFor(num_rows, kTileRows, [&](int64_t begin, int64_t end) {
      const absl::Status status = ConvertRows(tensor, first_row + begin, first_row + end,
                                              packed_.data() + begin * packed_row);
      if (status.ok()) return;
      MutexLock lock(&mu);
      converted.Update(status);
    });
    CARAVAN_RETURN_IF_ERROR(Annotate(converted, absl::StrCat("tensor ", name)));
    CARAVAN_RETURN_IF_ERROR(sink(packed_));
  }
  return absl::OkStatus();
}

}  // namespace caravan
