#include "model/pack/matrix_packer.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/check.h"
#include "base/mutex.h"
#include "base/status_macros.h"
#include "kernels/quant/dequantize.h"
#include "kernels/quant/fp8_blocks.h"
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
  float* packed_scales;     // of the whole matrix, to be written where it becomes FP8; else null

  /// Rows are converted so many at a time, or all that are left.
  int64_t granule() const { return packed_scales == nullptr ? kTileRows : kFp8BlockSize; }
};

/// Row `row`'s weights out of `stored`, its bytes.
void Dequantize(const Conversion& tensor, int64_t row, const std::byte* stored, float* values) {
  DequantizeRow(tensor.stored->dtype, stored, tensor.cols, values);
  if (tensor.scales == nullptr) return;
  const float* const scales = tensor.scales + row / kFp8BlockSize * Fp8Blocks(tensor.cols);
  for (int64_t col = 0; col < tensor.cols; ++col) values[col] *= scales[col / kFp8BlockSize];
}

/// Row `row` of the tensor, `stored`, in a packed format that it has not yet. `values` is scratch
/// of [cols].
absl::Status ConvertRow(const Conversion& tensor, int64_t row, const std::byte* stored,
                        float* values, std::byte* out) {
  const DType to = tensor.packed->dtype;
  Dequantize(tensor, row, stored, values);
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

/// Rows [begin, end), `stored`, of a matrix that becomes FP8, and their blocks' scales.
absl::Status ConvertToFp8(const Conversion& tensor, int64_t begin, int64_t end,
                          const std::byte* stored, std::byte* out) {
  const int64_t stored_row = DTypeBytes(tensor.stored->dtype, tensor.cols);
  std::vector<float> values(static_cast<size_t>((end - begin) * tensor.cols));
  for (int64_t row = begin; row < end; ++row) {
    Dequantize(tensor, row, stored + (row - begin) * stored_row,
               values.data() + (row - begin) * tensor.cols);
  }
  return QuantizeFp8Blocks(values.data(), end - begin, tensor.cols, out,
                           tensor.packed_scales + begin / kFp8BlockSize * Fp8Blocks(tensor.cols));
}

/// Rows [begin, end), `stored`, in a packed format that they have not yet, row-major.
absl::Status Convert(const Conversion& tensor, int64_t begin, int64_t end, const std::byte* stored,
                     std::byte* out) {
  if (tensor.packed_scales != nullptr) {
    return Annotate(ConvertToFp8(tensor, begin, end, stored, out),
                    absl::StrCat("one of rows ", begin, " to ", end - 1));
  }
  const int64_t stored_row = DTypeBytes(tensor.stored->dtype, tensor.cols);
  const int64_t packed_row = DTypeBytes(tensor.packed->dtype, tensor.cols);
  std::vector<float> values(static_cast<size_t>(tensor.cols));
  for (int64_t row = begin; row < end; ++row) {
    CARAVAN_RETURN_IF_ERROR(Annotate(ConvertRow(tensor, row, stored + (row - begin) * stored_row,
                                                values.data(), out + (row - begin) * packed_row),
                                     absl::StrCat("row ", row)));
  }
  return absl::OkStatus();
}

/// Reads rows [begin, end) of the tensor and writes them to `out` in the packed layout.
/// REQUIRES: begin is a granule's first row.
absl::Status ConvertRows(const Conversion& tensor, int64_t begin, int64_t end, std::byte* out) {
  const DType from = tensor.stored->dtype;
  const DType to = tensor.packed->dtype;
  const int64_t stored_row = DTypeBytes(from, tensor.cols);
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
  std::vector<std::byte> row_major(
      tiled ? static_cast<size_t>((end - begin) * DTypeBytes(to, tensor.cols)) : 0);
  std::byte* const rows = tiled ? row_major.data() : out;
  CARAVAN_RETURN_IF_ERROR(Convert(tensor, begin, end, stored.data(), rows));
  if (tiled) TileMatrix(to, end - begin, tensor.cols, rows, out);
  return absl::OkStatus();
}

}  // namespace

absl::Status MatrixPacker::Pack(const std::string& name, const TensorInfo& packed, Sink sink) {
  if (source_->Find(name) != nullptr) return PackStored(name, packed, sink);
  // The scales of a matrix that becomes FP8 are known once all of it has been converted.
  CARAVAN_CHECK(scales_of_ == absl::StripSuffix(name, ScaleName("")));
  return sink(absl::MakeConstSpan(reinterpret_cast<const std::byte*>(packed_scales_.data()),
                                  packed_scales_.size() * sizeof(float)));
}

absl::Status MatrixPacker::PackStored(const std::string& name, const TensorInfo& packed,
                                      Sink sink) {
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
  Conversion tensor = {source_, &name, &stored, &packed, cols, nullptr, nullptr, nullptr};
  scales_of_.clear();
  if (packed.dtype == DType::kF8E4M3 && stored.dtype != packed.dtype) {
    packed_scales_.resize(static_cast<size_t>(Fp8Blocks(rows) * Fp8Blocks(cols)));
    tensor.packed_scales = packed_scales_.data();
  }
  const int64_t granule = tensor.granule();
  const int64_t piece_rows = std::max<int64_t>(1, kPieceBytes / stored_row / granule) * granule;
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
    pool_->ParallelFor(num_rows, granule, [&](int64_t begin, int64_t end) {
      const absl::Status status = ConvertRows(tensor, first_row + begin, first_row + end,
                                              packed_.data() + begin * packed_row);
      if (status.ok()) return;
      MutexLock lock(&mu);
      converted.Update(status);
    });
    CARAVAN_RETURN_IF_ERROR(Annotate(converted, absl::StrCat("tensor ", name)));
    CARAVAN_RETURN_IF_ERROR(sink(packed_));
  }
  if (tensor.packed_scales != nullptr) scales_of_ = name;
  return absl::OkStatus();
}

}  // namespace caravan
