// A row's result is the same to the bit whatever rides beside it, however its prompt was cut and
// however many threads there are.

#include <functional>
#include <set>

#include "gmock/gmock.h"
#include "tests/kernels/attention_testing.h"

namespace caravan {
namespace {

/// Runs rows [first_row, first_row + num_rows) of a fixed batch: out [num_rows, width].
using RunRows =
    std::function<void(Backend& backend, int64_t first_row, int64_t num_rows, float* out)>;

/// Expects the same bits from a whole batch, from rows alone and from uneven pieces, on 1, 2 and 3
/// threads.
void ExpectRowsIndependent(int64_t num_rows, int64_t width, const RunRows& run) {
  for (const TestedKind& kind : TestedKinds()) {
    std::vector<float> expected(num_rows * width);
    std::unique_ptr<Backend> first = kind.make(1);
    run(*first, 0, num_rows, expected.data());
    // Else the comparison could pass on output that nobody wrote.
    EXPECT_GT(std::set<float>(expected.begin(), expected.end()).size(), expected.size() / 4);
    for (const int num_threads : TestedThreadCounts()) {
      std::unique_ptr<Backend> backend = kind.make(num_threads);
      for (const int64_t piece : {num_rows, int64_t{1}, int64_t{2}, int64_t{5}}) {
        std::vector<float> out(num_rows * width);
        for (int64_t row = 0; row < num_rows; row += piece) {
          run(*backend, row, std::min(piece, num_rows - row), out.data() + row * width);
        }
        ASSERT_EQ(std::memcmp(out.data(), expected.data(), out.size() * sizeof(float)), 0)
            << backend->Name() << ", pieces of " << piece;
      }
    }
  }
}

TEST(DeterminismTest, MatMul) {
  for (const DType dtype : kWeightTypes) {
    Rng rng(1);
    // Large enough for three threads even at one row.
    const TestMatrix w = TestMatrix::Random(rng, dtype, 301, 1101);
    const std::vector<float> x = RandomFloats(rng, 11 * 1101);
    ExpectRowsIndependent(11, 301,
                          [&](Backend& backend, int64_t row, int64_t num_rows, float* out) {
                            backend.MatMul(w.view(), x.data() + row * 1101, num_rows, out);
                          });
  }
}

TEST(DeterminismTest, MatMulOfTiles) {
  const auto expect_independent = [](const TestMatrix& w, int64_t num_rows, Rng& rng) {
    std::vector<std::byte> tiles;
    const Matrix tiled = w.Tiled(tiles);
    const std::vector<float> x = RandomFloats(rng, num_rows * tiled.cols);
    ExpectRowsIndependent(num_rows, tiled.rows,
                          [&](Backend& backend, int64_t row, int64_t count, float* out) {
                            backend.MatMul(tiled, x.data() + row * tiled.cols, count, out);
                          });
  };
  // Past the 16 rows up to which tiles are streamed one by one.
  for (const DType dtype : kWeightTypes) {
    Rng rng(1);
    expect_independent(TestMatrix::Random(rng, dtype, 301, 1101), 21, rng);
  }
  for (const DType dtype : kBlockTypes) {
    Rng rng(1);
    expect_independent(TestMatrix::RandomBlocks(rng, dtype, 301, 1024), 21, rng);
  }
  // Past the rows that go through a tile together.
  Rng rng(2);
  expect_independent(TestMatrix::RandomBlocks(rng, DType::kQ8_0, 17, 96), 1100, rng);
}

constexpr int64_t kNumExperts = 7;

/// Of kNumExperts experts, three a row.
void ExpectRoutedRowsIndependent(const std::vector<FfnWeights>& experts, Rng& rng) {
  const int64_t hidden = experts[0].gate.cols, k = 3, num_rows = 37;
  const std::vector<float> x = RandomFloats(rng, num_rows * hidden);
  const std::vector<float> weights = RandomFloats(rng, num_rows * k);
  std::vector<int32_t> ids;
  for (int64_t t = 0; t < num_rows; ++t) {
    const int32_t first = static_cast<int32_t>(RandomInt(rng, 0, 2));
    ids.insert(ids.end(), {first, first + 1, first + 4});
  }
  ExpectRowsIndependent(
      num_rows, hidden, [&](Backend& backend, int64_t row, int64_t count, float* out) {
        std::fill_n(out, count * hidden, 0.0f);
        RunResidentExperts(backend, experts, x.data() + row * hidden, count, ids.data() + row * k,
                           weights.data() + row * k, k, out);
      });
}

TEST(DeterminismTest, RoutedExpertsOfTiles) {
  for (const DType dtype : kBlockTypes) {
    Rng rng(3);
    const int64_t hidden = 256, inter = 512;
    std::vector<std::vector<std::byte>> tiles(3 * kNumExperts);
    std::vector<FfnWeights> experts;
    for (int64_t e = 0; e < kNumExperts; ++e) {
      experts.push_back(
          {TestMatrix::RandomBlocks(rng, dtype, inter, hidden).Tiled(tiles[3 * e]),
           TestMatrix::RandomBlocks(rng, dtype, inter, hidden).Tiled(tiles[3 * e + 1]),
           TestMatrix::RandomBlocks(rng, dtype, hidden, inter).Tiled(tiles[3 * e + 2])});
    }
    ExpectRoutedRowsIndependent(experts, rng);
  }
}

TEST(DeterminismTest, RmsNorm) {
  Rng rng(2);
  const std::vector<float> x = RandomFloats(rng, 11 * 301), weight = RandomFloats(rng, 301);
  ExpectRowsIndependent(11, 301, [&](Backend& backend, int64_t row, int64_t num_rows, float* out) {
    backend.RmsNorm(x.data() + row * 301, num_rows, 301, weight.data(), 1e-6f, out);
  });
}

TEST(DeterminismTest, Ffn) {
  Rng rng(3);
  const TestMatrix gate = TestMatrix::Random(rng, DType::kF8E4M3, 530, 601);
  const TestMatrix up = TestMatrix::Random(rng, DType::kBF16, 530, 601);
  const TestMatrix down = TestMatrix::Random(rng, DType::kF8E4M3, 601, 530);
  const FfnWeights ffn = {gate.view(), up.view(), down.view()};
  const std::vector<float> x = RandomFloats(rng, 11 * 601);
  ExpectRowsIndependent(11, 601, [&](Backend& backend, int64_t row, int64_t num_rows, float* out) {
    backend.Ffn(ffn, x.data() + row * 601, num_rows, out);
  });
}

TEST(DeterminismTest, FfnPastItsTileOfRows) {
  Rng rng(4);
  const TestMatrix gate = TestMatrix::Random(rng, DType::kBF16, 9, 10);
  const TestMatrix up = TestMatrix::Random(rng, DType::kBF16, 9, 10);
  const TestMatrix down = TestMatrix::Random(rng, DType::kBF16, 10, 9);
  const FfnWeights ffn = {gate.view(), up.view(), down.view()};
  const std::vector<float> x = RandomFloats(rng, 1100 * 10);
  ExpectRowsIndependent(1100, 10, [&](Backend& backend, int64_t row, int64_t num_rows, float* out) {
    backend.Ffn(ffn, x.data() + row * 10, num_rows, out);
  });
}

TEST(DeterminismTest, RoutedExperts) {
  Rng rng(5);
  const int64_t hidden = 259, inter = 140;
  std::vector<TestMatrix> matrices;
  for (int64_t e = 0; e < kNumExperts; ++e) {
    matrices.push_back(TestMatrix::Random(rng, DType::kF8E4M3, inter, hidden));
    matrices.push_back(TestMatrix::Random(rng, DType::kF8E4M3, inter, hidden));
    matrices.push_back(TestMatrix::Random(rng, DType::kF8E4M3, hidden, inter));
  }
  std::vector<FfnWeights> experts;
  for (int64_t e = 0; e < kNumExperts; ++e) {
    experts.push_back(
        {matrices[3 * e].view(), matrices[3 * e + 1].view(), matrices[3 * e + 2].view()});
  }
  ExpectRoutedRowsIndependent(experts, rng);
}

TEST(DeterminismTest, Route) {
  Rng rng(6);
  RouterShape shape = {.n_routed_experts = 64, .num_experts_per_tok = 6, .n_group = 8};
  shape.topk_group = 4;
  const std::vector<float> logits = RandomFloats(rng, 11 * 64, 4), bias = RandomFloats(rng, 64);
  ExpectRowsIndependent(11, 6, [&](Backend& backend, int64_t row, int64_t num_rows, float* out) {
    std::vector<int32_t> ids(num_rows * 6);
    backend.Route(shape, logits.data() + row * 64, bias.data(), num_rows, ids.data(), out);
  });
}

/// WriteKv, RotateQueries and MlaAttention of a whole prompt in pieces of `piece` rows.
std::vector<float> Prefill(Backend& backend, const MlaShape& shape, const TestMatrix& kv_b,
                           const std::vector<float>& kv_a, const std::vector<float>& q,
                           int64_t num_rows, int64_t piece, const KvLayout& kv,
                           bool beside_another) {
  const std::vector<float> inv_freq = TestInvFreq(shape.qk_rope_head_dim);
  const std::vector<float> norm(shape.kv_lora_rank, 0.9f);
  const int64_t q_width = shape.num_heads * shape.q_head_dim();
  const int64_t out_width = shape.num_heads * shape.v_head_dim;
  TestCache cache(shape, kv, num_rows), other(shape, kv, num_rows);
  std::vector<float> out;
  for (int64_t row = 0; row < num_rows; row += piece) {
    const int64_t count = std::min(piece, num_rows - row);
    // The other sequence has the same rows in reverse order.
    const int64_t first_row = beside_another ? count : 0;
    std::vector<SequenceRows> sequences;
    if (beside_another) sequences.push_back(other.Rows(0, count, row));
    sequences.push_back(cache.Rows(first_row, count, row));
    std::vector<float> kv_part, q_part;
    for (int64_t i = 0; i < first_row; ++i) {
      const int64_t from = num_rows - 1 - row - i;
      kv_part.insert(kv_part.end(), &kv_a[from * shape.kv_width()],
                     &kv_a[from * shape.kv_width()] + shape.kv_width());
      q_part.insert(q_part.end(), &q[from * q_width], &q[from * q_width] + q_width);
    }
    kv_part.insert(kv_part.end(), kv_a.begin() + row * shape.kv_width(),
                   kv_a.begin() + (row + count) * shape.kv_width());
    q_part.insert(q_part.end(), q.begin() + row * q_width, q.begin() + (row + count) * q_width);
    std::vector<float> part((first_row + count) * out_width);
    backend.WriteKv(shape, TestRope(inv_freq), norm.data(), 1e-6f, sequences, kv, kv_part.data());
    backend.RotateQueries(shape, TestRope(inv_freq), sequences, q_part.data());
    backend.MlaAttention(shape, kv_b.view(), sequences, kv, q_part.data(), part.data());
    out.insert(out.end(), part.begin() + first_row * out_width, part.end());
  }
  return out;
}

TEST(DeterminismTest, AttentionPastASpanOfPositions) {
  const MlaShape shape = {.num_heads = 11,
                          .qk_nope_head_dim = 16,
                          .qk_rope_head_dim = 32,
                          .v_head_dim = 9,
                          .kv_lora_rank = 64,
                          .softmax_scale = 0.3f};
  constexpr int64_t kRows = 600;  // three spans
  Rng rng(8);
  const TestMatrix kv_b = TestMatrix::Random(rng, DType::kBF16, 11 * 25, 64);
  const std::vector<float> kv_a = RandomFloats(rng, kRows * shape.kv_width());
  const std::vector<float> q = RandomFloats(rng, kRows * 11 * shape.q_head_dim());
  for (const DType kv_dtype : kKvDTypes) {
    for (const TestedKind& kind : TestedKinds()) {
      const std::vector<float> expected =
          Prefill(*kind.make(1), shape, kv_b, kv_a, q, kRows, kRows, {kv_dtype, 64}, false);
      // Few rows are shared out by spans, and many threads by heads too.
      for (const auto& [threads, piece] :
           {std::pair{1, 255}, {2, 300}, {3, 599}, {2, 1}, {5, 1}, {16, 97}}) {
        if (kind.slow && piece == 1 && kv_dtype != DType::kQ8_0) continue;
        const std::vector<float> out = Prefill(*kind.make(threads), shape, kv_b, kv_a, q, kRows,
                                               piece, {kv_dtype, 48}, piece == 97);
        ASSERT_EQ(std::memcmp(out.data(), expected.data(), out.size() * sizeof(float)), 0)
            << DTypeName(kv_dtype) << " " << kind.name << ", " << threads << " threads, pieces of "
            << piece;
      }
    }
  }
}

TEST(DeterminismTest, AttentionOfAPromptCutAnyhow) {
  constexpr int64_t kRows = 150;  // three tiles of positions
  const std::pair<DType, DType> types[] = {{DType::kF32, DType::kF32},
                                           {DType::kBF16, DType::kF16},
                                           {DType::kF8E4M3, DType::kQ8_0},
                                           {DType::kF16, DType::kF32}};
  for (const auto& [dtype, kv_dtype] : types) {
    MlaShape shape = {.num_heads = 5,
                      .qk_nope_head_dim = 18,
                      .qk_rope_head_dim = 6,
                      .v_head_dim = 19,
                      .kv_lora_rank = 37,
                      .softmax_scale = 0.3f};
    if (kv_dtype == DType::kQ8_0) {
      shape.qk_rope_head_dim = 32;
      shape.kv_lora_rank = 64;
    }
    Rng rng(7);
    const TestMatrix kv_b = TestMatrix::Random(rng, dtype, 5 * (18 + 19), shape.kv_lora_rank);
    const std::vector<float> kv_a = RandomFloats(rng, kRows * shape.kv_width());
    const std::vector<float> q = RandomFloats(rng, kRows * 5 * shape.q_head_dim());
    for (const TestedKind& kind : TestedKinds()) {
      std::unique_ptr<Backend> first = kind.make(1);
      const std::vector<float> expected =
          Prefill(*first, shape, kv_b, kv_a, q, kRows, kRows, {kv_dtype, 16}, false);
      for (const int num_threads : TestedThreadCounts()) {
        std::unique_ptr<Backend> backend = kind.make(num_threads);
        for (const int64_t piece : {kRows, int64_t{7}, int64_t{1}}) {
          for (const int64_t block_tokens : {16, 5}) {
            for (const bool beside_another : {false, true}) {
              const std::vector<float> out = Prefill(*backend, shape, kv_b, kv_a, q, kRows, piece,
                                                     {kv_dtype, block_tokens}, beside_another);
              ASSERT_EQ(std::memcmp(out.data(), expected.data(), out.size() * sizeof(float)), 0)
                  << backend->Name() << " " << DTypeName(dtype) << " " << DTypeName(kv_dtype)
                  << ", pieces of " << piece << ", blocks of " << block_tokens
                  << (beside_another ? ", beside another" : "");
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace caravan
