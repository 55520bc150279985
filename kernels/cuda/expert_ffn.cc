#include "kernels/cuda/expert_ffn.h"

#include <algorithm>
#include <limits>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "kernels/cuda/matrix_product.h"
#include "kernels/cuda/product_launch.h"
#include "kernels/tiled/tile_layout.h"

namespace caravan {
namespace {

/// Whether gate and up can share a launch that leaves the blocks that down takes.
bool IsFused(const FfnWeights& ffn) {
  return ffn.gate.dtype == ffn.up.dtype && TakesActivationRows(ffn.gate.dtype) &&
         TakesActivationRows(ffn.down.dtype);
}

absl::Status CheckFfn(const FfnWeights& ffn, const CudaFfnLimits& limits, int64_t inter) {
  for (const Matrix* w : {&ffn.gate, &ffn.up, &ffn.down}) {
    CARAVAN_RETURN_IF_ERROR(CheckCudaMatrix(*w));
  }
  CARAVAN_CHECK(ffn.gate.rows == ffn.up.rows && ffn.gate.rows == ffn.down.cols);
  CARAVAN_CHECK(ffn.gate.cols == ffn.up.cols && ffn.gate.cols == ffn.down.rows);
  CARAVAN_CHECK(ffn.gate.cols <= limits.hidden && ffn.gate.rows <= inter);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaExpertFfn>> CudaExpertFfn::Create(const CudaStream& stream,
                                                                     const CudaFfnLimits& limits) {
  auto ffn = absl::WrapUnique(new CudaExpertFfn(stream, limits));
  const CudaFfnSizes sizes = SizesFor(limits);
  const auto take = [&](int64_t bytes, DeviceBuffer& buffer) -> absl::Status {
    CARAVAN_ASSIGN_OR_RETURN(buffer, DeviceBuffer::Create(stream.device(), bytes));
    return absl::OkStatus();
  };
  CARAVAN_RETURN_IF_ERROR(take(sizes.x_blocks, ffn->x_blocks_));
  CARAVAN_RETURN_IF_ERROR(take(sizes.routing, ffn->routing_bytes_));
  CARAVAN_RETURN_IF_ERROR(take(sizes.inner, ffn->inner_));
  CARAVAN_RETURN_IF_ERROR(take(sizes.work, ffn->work_));
  ffn->routing_ = RoutingAt(ffn->routing_bytes_.data(), limits.max_rows * limits.max_chosen);
  return ffn;
}

absl::Status CudaExpertFfn::RunExperts(ExpertBatches& experts, const float* x, int64_t num_rows,
                                       const int32_t* expert_ids, const float* weights, int64_t k,
                                       float* out) {
  CARAVAN_CHECK(num_rows <= limits_.max_rows && k <= limits_.max_chosen);
  Call call = {.x = x,
               .num_rows = num_rows,
               .expert_ids = expert_ids,
               .weights = weights,
               .k = k,
               .out = out,
               .keeps = !experts.ascending()};
  int64_t hidden = 0;
  while (true) {
    CARAVAN_ASSIGN_OR_RETURN(absl::Span<const LoadedExpert> batch, experts.Next());
    if (batch.empty()) break;
    hidden = batch[0].weights.down.rows;
    CARAVAN_CHECK(!call.keeps || call.num_shares() * hidden * static_cast<int64_t>(sizeof(float)) <=
                                     work_.bytes());
    for (; !batch.empty(); batch.remove_prefix(std::min<size_t>(batch.size(), kMaxTableExperts))) {
      CARAVAN_RETURN_IF_ERROR(RunBatch(call, batch.subspan(0, kMaxTableExperts)));
    }
  }
  if (!call.keeps || hidden == 0) return absl::OkStatus();
  return AddProducts(stream_, work_.as<float>(), expert_ids, weights, num_rows, k, 0, hidden, 0,
                     std::numeric_limits<int32_t>::max(), out, hidden);
}

absl::Status CudaExpertFfn::RunBatch(Call& call, absl::Span<const LoadedExpert> batch) {
  if (call.num_shares() == 0) return absl::OkStatus();
  const FfnWeights& first = batch[0].weights;
  ExpertTable table;
  for (const LoadedExpert& expert : batch) {
    const FfnWeights& ffn = expert.weights;
    CARAVAN_RETURN_IF_ERROR(CheckFfn(ffn, limits_, limits_.expert_inter));
    CARAVAN_CHECK(expert.id >= 0 && expert.id <= kMaxExpertId);
    CARAVAN_CHECK(ffn.gate.rows == first.gate.rows && ffn.gate.cols == first.gate.cols);
    if (ffn.gate.dtype != first.gate.dtype || ffn.up.dtype != first.up.dtype ||
        ffn.down.dtype != first.down.dtype) {
      return absl::InvalidArgumentError(
          absl::StrCat("experts ", batch[0].id, " and ", expert.id,
                       " differ in their types: the CUDA backend takes experts of one kind"));
    }
    table.ids[table.count] = expert.id;
    int m = 0;
    for (const Matrix* w : {&ffn.gate, &ffn.up, &ffn.down}) {
      table.matrices[table.count][m] = w->data;
      table.scales[table.count][m++] = w->scale_inv;
    }
    ++table.count;
  }
  CARAVAN_RETURN_IF_ERROR(
      RouteShares(stream_, table, call.expert_ids, call.num_rows, call.k, routing_));
  CARAVAN_RETURN_IF_ERROR(RunInner(call, first, table.count));

  const int64_t hidden = first.down.rows;
  const int64_t all_tiles = Tiles(hidden);
  const int64_t room = work_.bytes() / static_cast<int64_t>(sizeof(float)) / call.num_shares();
  const int64_t most_tiles = call.keeps || room >= hidden ? all_tiles : room / kTileRows;
  for (int64_t tile = 0; tile < all_tiles; tile += most_tiles) {
    const int64_t tiles = std::min(most_tiles, all_tiles - tile);
    const int64_t first_col = tile * kTileRows;
    const int64_t cols = std::min(tiles * kTileRows, hidden - first_col);
    CARAVAN_RETURN_IF_ERROR(RunDown(call, first.down, table.count, tile, tiles, cols));
    if (call.keeps) continue;
    CARAVAN_RETURN_IF_ERROR(AddProducts(stream_, work_.as<float>(), call.expert_ids, call.weights,
                                        call.num_rows, call.k, first_col, cols, batch.front().id,
                                        batch.back().id, call.out, hidden));
  }
  return absl::OkStatus();
}

absl::Status CudaExpertFfn::QuantizeInputs(Call& call, int64_t cols) {
  if (call.has_blocks) return absl::OkStatus();
  call.has_blocks = true;
  return QuantizeRows(stream_, call.x, call.num_rows, cols,
                      ActivationsAt(x_blocks_.data(), call.num_rows, cols));
}

ActivationRows CudaExpertFfn::InnerBlocks(int64_t num_rows, int64_t inter) const {
  return ActivationsAt(inner_.data(), num_rows, inter);
}

absl::Status CudaExpertFfn::RunInner(Call& call, const FfnWeights& first, int64_t count) {
  const int64_t inter = first.gate.rows;
  if (TakesActivationRows(first.gate.dtype) || TakesActivationRows(first.up.dtype)) {
    CARAVAN_RETURN_IF_ERROR(QuantizeInputs(call, first.gate.cols));
  }
  ProductArgs args;
  args.x = ActivationsAt(x_blocks_.data(), call.num_rows, first.gate.cols);
  args.x_floats = call.x;
  args.in_rows = routing_.rows;
  if (IsFused(first)) {
    SetWeights(first.gate, args);
    args.num_matrices = 2;
    args.swiglu = InnerBlocks(call.num_shares(), inter);
    args.swiglu_columns = static_cast<int>(PaddedColumns(inter));
    return LaunchPasses(call, first.gate.dtype, count, args);
  }
  float* const gates =
      TakesActivationRows(first.down.dtype) ? work_.as<float>() : inner_.as<float>();
  float* const ups = work_.as<float>() + call.num_shares() * inter;
  args.out_stride = inter;
  SetWeights(first.gate, args);
  args.out = gates;
  CARAVAN_RETURN_IF_ERROR(LaunchPasses(call, first.gate.dtype, count, args));
  SetWeights(first.up, args);
  args.first_matrix = 1;
  args.out = ups;
  CARAVAN_RETURN_IF_ERROR(LaunchPasses(call, first.up.dtype, count, args));
  const ActivationRows blocks = InnerBlocks(call.num_shares(), inter);
  return ApplySwiGlu(stream_, gates, ups, call.num_shares(), inter, routing_.num_sorted,
                     TakesActivationRows(first.down.dtype) ? &blocks : nullptr);
}

absl::Status CudaExpertFfn::RunDown(const Call& call, const Matrix& down, int64_t count,
                                    int64_t first_tile, int64_t num_tiles, int64_t stride) {
  ProductArgs args;
  SetWeights(down, args);
  args.first_matrix = 2;
  args.first_tile = static_cast<int>(first_tile);
  args.num_tiles = static_cast<int>(num_tiles);
  args.x = InnerBlocks(call.num_shares(), down.cols);
  args.x_floats = inner_.as<float>();
  args.out = work_.as<float>();
  args.out_stride = stride;
  args.out_rows = routing_.shares;
  return LaunchPasses(call, down.dtype, count, args);
}

absl::Status CudaExpertFfn::LaunchPasses(const Call& call, DType dtype, int64_t count,
                                         ProductArgs args) {
  for (int c = 0; c < kNumPassClasses; ++c) {
    // An expert has at most num_rows rows.
    if (c > 0 && call.num_rows <= kPassClassRows[c - 1]) break;
    args.passes = routing_.passes[c];
    args.num_passes = routing_.num_passes + c;
    CARAVAN_RETURN_IF_ERROR(
        LaunchProduct(stream_, dtype, WidthFor(std::min<int64_t>(call.num_rows, kPassClassRows[c])),
                      MaxPasses(c, count, call.num_shares()), args));
  }
  return absl::OkStatus();
}

absl::Status CudaExpertFfn::RunDense(const FfnWeights& ffn, const float* x, int64_t num_rows,
                                     float* out) {
  CARAVAN_CHECK(num_rows <= limits_.max_rows);
  CARAVAN_RETURN_IF_ERROR(CheckFfn(ffn, limits_, limits_.dense_inter));
  const int64_t inter = ffn.gate.rows;
  CudaRows rows = {.floats = x, .blocks = ActivationsAt(x_blocks_.data(), num_rows, ffn.gate.cols)};
  if (TakesActivationRows(ffn.gate.dtype) || TakesActivationRows(ffn.up.dtype)) {
    CARAVAN_RETURN_IF_ERROR(QuantizeRows(stream_, x, num_rows, ffn.gate.cols, rows.blocks));
  }
  const ActivationRows inner = InnerBlocks(num_rows, inter);
  if (IsFused(ffn)) {
    ProductArgs args;
    SetWeights(ffn.gate, args);
    args.matrices[1] = ffn.up.data;
    args.num_matrices = 2;
    args.x = rows.blocks;
    args.num_rows = static_cast<int>(num_rows);
    args.swiglu = inner;
    args.swiglu_columns = static_cast<int>(PaddedColumns(inter));
    const int width = WidthFor(num_rows);
    CARAVAN_RETURN_IF_ERROR(LaunchProduct(stream_, ffn.gate.dtype, width,
                                          CeilDiv<int64_t>(num_rows, kWidthRows[width]), args));
    return MultiplyRows(stream_, ffn.down, {.blocks = inner}, num_rows, out);
  }
  const bool as_blocks = TakesActivationRows(ffn.down.dtype);
  float* const gates = as_blocks ? work_.as<float>() : inner_.as<float>();
  float* const ups = work_.as<float>() + num_rows * inter;
  CARAVAN_RETURN_IF_ERROR(MultiplyRows(stream_, ffn.gate, rows, num_rows, gates));
  CARAVAN_RETURN_IF_ERROR(MultiplyRows(stream_, ffn.up, rows, num_rows, ups));
  CARAVAN_RETURN_IF_ERROR(
      ApplySwiGlu(stream_, gates, ups, num_rows, inter, nullptr, as_blocks ? &inner : nullptr));
  return MultiplyRows(stream_, ffn.down, {.floats = gates, .blocks = inner}, num_rows, out);
}

}  // namespace caravan
