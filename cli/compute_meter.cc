#include "cli/compute_meter.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "absl/types/span.h"
#include "base/check.h"
#include "base/int_math.h"
#include "base/median.h"
#include "base/status_macros.h"
#include "cluster/pipeline_plan.h"
#include "kernels/kv_rows.h"
#include "kernels/tiled/tile_layout.h"

namespace caravan {
namespace {

// Far more than a call's overhead, and than what it costs to wait for a card.
constexpr absl::Duration kLeastRun = absl::Milliseconds(10);
// A median of fewer is none.
constexpr size_t kLeastRuns = 3;

constexpr int64_t kWeightBytes = int64_t{256} << 20;
// The same again and again: what they are is no matter to the time.
constexpr int64_t kNoiseWords = int64_t{1} << 19;
constexpr DType kWeightType = DType::kQ4_K;

// The end of a prompt: enough rows for all cores, and as many tokens as make attending, not
// bringing queries into the latent space, most of the work.
constexpr int64_t kAttentionRows = 64;
constexpr int64_t kAttentionContext = 512;
// What packs keep attention's matrices in, whose experts are in kWeightType.
constexpr DType kAttentionWeightType = DType::kQ8_0;

}  // namespace

ModelConfig MeasuredConfig() {
  ModelConfig config;
  config.vocab_size = 1024;
  config.hidden_size = 7168;
  config.intermediate_size = 2048;
  config.moe_intermediate_size = 2048;
  config.num_hidden_layers = 1;
  config.num_attention_heads = 128;
  config.n_routed_experts = 256;
  config.kv_lora_rank = 512;
  config.qk_nope_head_dim = 128;
  config.qk_rope_head_dim = 64;
  config.v_head_dim = 128;
  config.router.n_routed_experts = 256;
  config.router.num_experts_per_tok = 8;
  config.max_position_embeddings = kAttentionContext;
  return config;
}

absl::StatusOr<Array> ComputeMeter::Fill(int64_t bytes) {
  std::vector<uint64_t> words(kNoiseWords);
  std::mt19937_64 random;
  // From 2^-31 to 2 as F32, from 0.13 to 2 as F16.
  for (uint64_t& word : words) word = (random() & 0x3f3f3f3f3f3f3f3f) | 0x3030303030303030;
  CARAVAN_ASSIGN_OR_RETURN(Array array, backend_.memory().Allocate(bytes, Memory::Use::kWhole));
  for (int64_t done = 0; done < bytes;) {
    const int64_t piece = std::min<int64_t>(kNoiseWords * sizeof(uint64_t), bytes - done);
    CARAVAN_RETURN_IF_ERROR(backend_.memory().CopyIn(words.data(), piece, array.data() + done));
    done += piece;
  }
  return array;
}

absl::StatusOr<Array> ComputeMeter::Activations(int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  std::mt19937_64 random;
  std::uniform_real_distribution<float> uniform(-1, 1);
  for (float& value : values) value = uniform(random);
  CARAVAN_ASSIGN_OR_RETURN(Array array, AllocateValues<float>(backend_.memory(), count));
  CARAVAN_RETURN_IF_ERROR(backend_.memory().CopyIn(
      values.data(), count * static_cast<int64_t>(sizeof(float)), array.data()));
  return array;
}

absl::Status ComputeMeter::Wait(const float* out) {
  float first = 0;
  return backend_.memory().CopyOut(out, sizeof(first), &first);
}

absl::StatusOr<std::vector<double>> ComputeMeter::SecondsOf(
    const float* out, absl::Span<const std::function<void()>> calls) {
  struct Runs {
    int64_t calls = 1;  // of each
    std::vector<double> seconds;
  };
  std::vector<Runs> all(calls.size());
  for (const std::function<void()>& call : calls) call();  // Threads started, scratch grown.
  CARAVAN_RETURN_IF_ERROR(Wait(out));
  const absl::Duration begin = clock_.Now();
  const absl::Duration end = begin + duration_ * static_cast<double>(calls.size());
  const auto enough = [](const Runs& runs) { return runs.seconds.size() >= kLeastRuns; };
  while (!std::all_of(all.begin(), all.end(), enough) || clock_.Now() < end) {
    for (size_t i = 0; i < calls.size(); ++i) {
      if (stop_.stop_requested()) return absl::CancelledError("measuring was stopped");
      Runs& runs = all[i];
      const absl::Duration run_begin = clock_.Now();
      for (int64_t call = 0; call < runs.calls; ++call) calls[i]();
      CARAVAN_RETURN_IF_ERROR(Wait(out));
      const absl::Duration taken = clock_.Now() - run_begin;
      if (taken < kLeastRun) {
        runs.calls *= 2;
        runs.seconds.clear();
      } else {
        runs.seconds.push_back(absl::ToDoubleSeconds(taken) / static_cast<double>(runs.calls));
      }
    }
  }
  std::vector<double> medians;
  for (Runs& runs : all) medians.push_back(Median(std::move(runs.seconds)));
  return medians;
}

absl::StatusOr<double> ComputeMeter::MultiplyAdds(int64_t rows) {
  CARAVAN_ASSIGN_OR_RETURN(const std::vector<Product> products, TimeProducts({rows}));
  return products[0].multiply_adds / products[0].seconds;
}

absl::StatusOr<ComputeMeter::Products> ComputeMeter::MeasureProducts(int64_t rows) {
  CARAVAN_CHECK(rows > 1);
  CARAVAN_ASSIGN_OR_RETURN(const std::vector<Product> products, TimeProducts({1, rows}));
  const Product& one = products[0];
  const Product& many = products[1];
  const double a_row = (many.seconds - one.seconds) / static_cast<double>(rows - 1);
  // Where the machine was so busy with others that more took no longer, all of it counts, twice.
  if (a_row <= 0 || a_row >= one.seconds) {
    return Products{one.bytes / one.seconds, many.multiply_adds / many.seconds};
  }
  return Products{one.bytes / (one.seconds - a_row), one.multiply_adds / a_row};
}

absl::StatusOr<std::vector<ComputeMeter::Product>> ComputeMeter::TimeProducts(
    absl::Span<const int64_t> rows) {
  const ModelConfig config = MeasuredConfig();
  Matrix matrix = {.data = nullptr,
                   .dtype = kWeightType,
                   .rows = config.moe_intermediate_size,
                   .cols = config.hidden_size,
                   .scale_inv = nullptr,
                   .layout = MatrixLayout::kTiled16};
  const int64_t matrix_bytes = RoundUp<int64_t>(MatrixBytes(matrix), 256);
  const int64_t matrices = kWeightBytes / matrix_bytes;
  const int64_t most_rows = *std::max_element(rows.begin(), rows.end());
  CARAVAN_ASSIGN_OR_RETURN(const Array weights, Fill(matrices * matrix_bytes));
  CARAVAN_ASSIGN_OR_RETURN(const Array x, Activations(most_rows * matrix.cols));
  CARAVAN_ASSIGN_OR_RETURN(const Array out,
                           AllocateValues<float>(backend_.memory(), most_rows * matrix.rows));
  int64_t next = 0;
  std::vector<std::function<void()>> calls;
  for (const int64_t num_rows : rows) {
    calls.emplace_back([&, num_rows] {
      matrix.data = weights.data() + next++ % matrices * matrix_bytes;
      backend_.MatMul(matrix, x.floats(), num_rows, out.floats());
    });
  }
  CARAVAN_ASSIGN_OR_RETURN(const std::vector<double> seconds, SecondsOf(out.floats(), calls));
  std::vector<Product> products;
  for (size_t i = 0; i < rows.size(); ++i) {
    products.push_back({seconds[i], static_cast<double>(MatrixBytes(matrix)),
                        static_cast<double>(matrix.rows * matrix.cols * rows[i])});
  }
  return products;
}

absl::StatusOr<double> ComputeMeter::AttentionMultiplyAdds() {
  const MlaShape shape = MeasuredConfig().Mla();
  Memory& memory = backend_.memory();
  Matrix kv_b = {.data = nullptr,
                 .dtype = kAttentionWeightType,
                 .rows = shape.num_heads * (shape.qk_nope_head_dim + shape.v_head_dim),
                 .cols = shape.kv_lora_rank,
                 .scale_inv = nullptr,
                 .layout = MatrixLayout::kTiled16};
  CARAVAN_ASSIGN_OR_RETURN(const Array kv_b_values, Fill(MatrixBytes(kv_b)));
  kv_b.data = kv_b_values.data();
  const KvLayout kv = {.dtype = DType::kF16, .block_tokens = kKvBlockTokens};
  const int64_t block_bytes = KvBytes(kv.dtype, kv.block_tokens * shape.kv_width());
  const int64_t num_blocks = CeilDiv(kAttentionContext, kv.block_tokens);
  CARAVAN_ASSIGN_OR_RETURN(const Array cache, Fill(num_blocks * block_bytes));
  std::vector<std::byte*> blocks;
  for (int64_t i = 0; i < num_blocks; ++i) blocks.push_back(cache.data() + i * block_bytes);
  CARAVAN_ASSIGN_OR_RETURN(const Array q,
                           Activations(kAttentionRows * shape.num_heads * shape.q_head_dim()));
  CARAVAN_ASSIGN_OR_RETURN(
      const Array out,
      AllocateValues<float>(memory, kAttentionRows * shape.num_heads * shape.v_head_dim));
  const SequenceRows rows = {.first_row = 0,
                             .num_rows = kAttentionRows,
                             .first_position = kAttentionContext - kAttentionRows,
                             .kv_blocks = blocks};
  CARAVAN_ASSIGN_OR_RETURN(const std::vector<double> seconds,
                           SecondsOf(out.floats(), {[&] {
                                       backend_.MlaAttention(shape, kv_b, {rows}, kv, q.floats(),
                                                             out.floats());
                                     }}));
  constexpr double kAttended = kAttentionContext - (kAttentionRows - 1) / 2.0;  // by a row
  const double attending = kAttended * static_cast<double>(shape.kv_width() + shape.kv_lora_rank);
  const auto projecting =
      static_cast<double>(shape.kv_lora_rank * (shape.qk_nope_head_dim + shape.v_head_dim));
  const auto queries = static_cast<double>(kAttentionRows * shape.num_heads);
  return queries * (attending + projecting) / seconds[0];
}

}  // namespace caravan
