#include "model/pack/matrix_packer.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/mutex.h"
#include "base/status_macros.h"
#include "kernels/quant/dequantize.h"
#include "kernels/quant/fp8_blocks.h"
#include "kernels/quant/quantize.h"
#include "kernels/tiled/tile_layout.h"
#include "model/tensor_table.h"

namespace caravan {
namespace {

// Of the source, read at a time.
constexpr int64_t kPieceBytes = int64_t{8} << 20;

/// The stored rows [first, first + num_rows) of one tensor, and what they become.
struct Piece {
  const TensorInfo* stored;
  const TensorInfo* packed;
  int64_t cols;
  int64_t first_row;
  int64_t num_rows;
  const std::byte* stored_bytes;
  const float* scales;      // of the whole matrix, or null
  const float* importance;  // [cols], or null
  float* packed_scales;     // of the whole matrix, to be written where it becomes FP8; else null

  /// Rows are converted so many at a time, or all that are left.
  int64_t granule() const { return packed_scales == nullptr ? kTileRows : kFp8BlockSize; }
};

/// One row's weights.
void Dequantize(const Piece& piece, int64_t row, float* values) {
  const DType from = piece.stored->dtype;
  DequantizeRow(from, piece.stored_bytes + row * DTypeBytes(from, piece.cols), piece.cols, values);
  if (piece.scales == nullptr) return;
  const float* const scales =
      piece.scales + (piece.first_row + row) / kFp8BlockSize * Fp8Blocks(piece.cols);
  for (int64_t col = 0; col < piece.cols; ++col) values[col] *= scales[col / kFp8BlockSize];
}

/// One row in the packed format. `values` is scratch of [cols].
absl::Status ConvertRow(const Piece& piece, int64_t row, float* values, std::byte* out) {
  const DType from = piece.stored->dtype;
  const DType to = piece.packed->dtype;
  if (from == to) {
    const int64_t bytes = DTypeBytes(to, piece.cols);
    std::memcpy(out, piece.stored_bytes + row * bytes, static_cast<size_t>(bytes));
    return absl::OkStatus();
  }
  Dequantize(piece, row, values);
  switch (to) {
    case DType::kF32:
      std::memcpy(out, values, static_cast<size_t>(piece.cols) * sizeof(float));
      return absl::OkStatus();
    case DType::kF16:
    case DType::kBF16:
      for (int64_t col = 0; col < piece.cols; ++col) {
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
      return QuantizeRow(to, values, piece.cols, piece.importance, out);
  }
}

/// Rows [begin, end) of a matrix that becomes FP8, row-major, and their blocks' scales.
absl::Status ConvertToFp8(const Piece& piece, int64_t begin, int64_t end, std::byte* out) {
  std::vector<float> values(static_cast<size_t>((end - begin) * piece.cols));
  for (int64_t row = begin; row < end; ++row) {
    Dequantize(piece, row, values.data() + (row - begin) * piece.cols);
  }
  const int64_t first_block = (piece.first_row + begin) / kFp8BlockSize;
  return QuantizeFp8Blocks(values.data(), end - begin, piece.cols, out,
                           piece.packed_scales + first_block * Fp8Blocks(piece.cols));
}

/// Rows [begin, end) of the piece, row-major.
absl::Status ConvertRowMajor(const Piece& piece, int64_t begin, int64_t end, std::byte* out) {
  if (piece.packed_scales != nullptr) {
    return Annotate(
        ConvertToFp8(piece, begin, end, out),
        absl::StrCat("row ", piece.first_row + begin, " or one of the next ", end - begin - 1));
  }
  const int64_t row_bytes = DTypeBytes(piece.packed->dtype, piece.cols);
  std::vector<float> values(static_cast<size_t>(piece.cols));
  for (int64_t row = begin; row < end; ++row) {
    CARAVAN_RETURN_IF_ERROR(
        Annotate(ConvertRow(piece, row, values.data(), out + (row - begin) * row_bytes),
                 absl::StrCat("row ", piece.first_row + row)));
  }
  return absl::OkStatus();
}

/// Rows [begin, end) of the piece into `out`, in the packed layout. begin is a granule's first row.
absl::Status ConvertRows(const Piece& piece, int64_t begin, int64_t end, std::byte* out) {
  if (piece.packed->layout == MatrixLayout::kRowMajor) {
    return ConvertRowMajor(piece, begin, end, out);
  }
  const DType to = piece.packed->dtype;
  std::vector<std::byte> rows(static_cast<size_t>((end - begin) * DTypeBytes(to, piece.cols)));
  CARAVAN_RETURN_IF_ERROR(ConvertRowMajor(piece, begin, end, rows.data()));
  TileMatrix(to, end - begin, piece.cols, rows.data(), out);
  return absl::OkStatus();
}

}  // namespace

absl::Status MatrixPacker::Pack(const std::string& name, const TensorInfo& packed, Sink sink) {
  if (source_->Find(name) != nullptr) return PackStored(name, packed, sink);
  // The scales of a matrix that becomes FP8: they are known once all of it has been converted, so
  // that is done once for them and once for the codes.
  const std::string matrix(absl::StripSuffix(name, ScaleName("")));
  TensorInfo codes = *source_->Find(matrix);
  codes.dtype = DType::kF8E4M3;
  const auto drop = [](absl::Span<const std::byte>) { return absl::OkStatus(); };
  CARAVAN_RETURN_IF_ERROR(PackStored(matrix, codes, drop));
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
  Piece piece = {&stored, &packed, cols, 0, 0, nullptr, nullptr, nullptr, nullptr};
  if (packed.dtype == DType::kF8E4M3 && stored.dtype != packed.dtype) {
    packed_scales_.resize(static_cast<size_t>(Fp8Blocks(rows) * Fp8Blocks(cols)));
    piece.packed_scales = packed_scales_.data();
  }
  const int64_t granule = piece.granule();
  const int64_t piece_rows = std::max<int64_t>(1, kPieceBytes / stored_row / granule) * granule;
  const Importance::Columns* const columns =
      importance_ == nullptr ? nullptr : importance_->Find(name);
  if (columns != nullptr && columns->count > 0) piece.importance = columns->mean_square.data();
  if (scale != nullptr && stored.dtype != packed.dtype) piece.scales = scales_.data();
  for (; piece.first_row < rows; piece.first_row += piece_rows) {
    piece.num_rows = std::min(piece_rows, rows - piece.first_row);
    stored_.resize(static_cast<size_t>(piece.num_rows * stored_row));
    CARAVAN_RETURN_IF_ERROR(Annotate(
        source_->ReadPart(name, piece.first_row * stored_row, absl::MakeSpan(stored_)), name));
    piece.stored_bytes = stored_.data();
    const int64_t whole_rows = packed.layout == MatrixLayout::kTiled16
                                   ? Tiles(piece.num_rows) * kTileRows
                                   : piece.num_rows;
    packed_.resize(static_cast<size_t>(whole_rows * packed_row));
    Mutex mu;
    absl::Status converted;
    pool_->ParallelFor(piece.num_rows, granule, [&](int64_t begin, int64_t end) {
      const absl::Status status =
          ConvertRows(piece, begin, end, packed_.data() + begin * packed_row);
      if (status.ok()) return;
      MutexLock lock(&mu);
      converted.Update(status);
    });
    if (!converted.ok()) {
      return absl::DataLossError(absl::StrCat("tensor ", name, ": ", converted.message()));
    }
    CARAVAN_RETURN_IF_ERROR(sink(packed_));
  }
  return absl::OkStatus();
}

}  // namespace caravan
