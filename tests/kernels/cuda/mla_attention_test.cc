// What the tests of all backends (attention_test.cc, determinism_test.cc) are too small for:
// attention on tensor cores, over several splits of positions.

#include "kernels/cuda/mla_attention.h"

#include <cmath>
#include <set>

#include "gmock/gmock.h"
#include "tests/kernels/attention_testing.h"
#include "tests/kernels/cuda/cuda_testing.h"

namespace caravan {
namespace {

/// Of R1 but for the heads; scores of random values are about as far apart as 1.5.
MlaShape ShapeWithHeads(int64_t num_heads) {
  return {.num_heads = num_heads,
          .qk_nope_head_dim = 128,
          .qk_rope_head_dim = 64,
          .v_head_dim = 128,
          .kv_lora_rank = 512,
          .softmax_scale = 0.03f};
}

struct Problem {
  Problem(Rng& rng, const MlaShape& shape, const KvLayout& kv, int64_t num_rows, int64_t context)
      : shape(shape),
        num_rows(num_rows),
        first_position(context - num_rows),
        kv_b(TestMatrix::Random(rng, DType::kF16, shape.num_heads * 256, 512)),
        cache(shape, kv, context),
        q(RandomFloats(rng, num_rows * shape.num_heads * shape.q_head_dim())) {
    for (int64_t p = 0; p < context; ++p) cache.Write(p, RandomFloats(rng, shape.kv_width()));
  }

  int64_t out_width() const { return shape.num_heads * shape.v_head_dim; }

  /// Rows [row, row + count), as rows first_row and on of a batch beside `beside`.
  std::vector<float> Run(Backend& backend, int64_t row, int64_t count,
                         const Problem* beside = nullptr) const {
    std::vector<SequenceRows> sequences;
    std::vector<float> queries;
    if (beside != nullptr) {
      sequences.push_back(beside->cache.Rows(0, beside->num_rows, beside->first_position));
      queries = beside->q;
    }
    const int64_t first_row = beside == nullptr ? 0 : beside->num_rows;
    const int64_t q_width = shape.num_heads * shape.q_head_dim();
    sequences.push_back(cache.Rows(first_row, count, first_position + row));
    queries.insert(queries.end(), q.begin() + row * q_width, q.begin() + (row + count) * q_width);
    std::vector<float> out((first_row + count) * out_width());
    backend.MlaAttention(shape, kv_b.view(), sequences, cache.kv(), queries.data(), out.data());
    return {out.begin() + first_row * out_width(), out.end()};
  }

  MlaShape shape;
  int64_t num_rows;
  int64_t first_position;
  TestMatrix kv_b;
  TestCache cache;
  std::vector<float> q;
};

class CudaMlaAttentionTest : public CudaTest {
 protected:
  Backend& backend() {
    if (backend_ == nullptr) backend_ = TestedKinds()[0].make(1);
    return *backend_;
  }

 private:
  std::unique_ptr<Backend> backend_;
};

TEST_F(CudaMlaAttentionTest, IsAsCloseToTheReferenceAsBinary16Allows) {
  struct Case {
    int64_t heads, rows, context;
  };
  for (const Case& c : {Case{2, 1, 2100}, Case{16, 3, 130}, Case{70, 2, 33}, Case{1, 1, 1}}) {
    for (const DType dtype : kKvDTypes) {
      Rng rng(c.context);
      const Problem problem(rng, ShapeWithHeads(c.heads), {dtype, 48}, c.rows, c.context);
      const std::vector<float> expected = problem.Run(*MakeReferenceBackend(), 0, c.rows);
      const std::vector<float> out = problem.Run(backend(), 0, c.rows);
      double difference = 0, magnitude = 0;
      for (size_t i = 0; i < out.size(); ++i) {
        difference += std::pow(static_cast<double>(out[i]) - expected[i], 2);
        magnitude += std::pow(expected[i], 2);
      }
      // Queries, weights and (of Q8_0) cached values are each off by 2^-12 or so, independently;
      // scores by 1.5 times that. So the whole is off by 3 * 2^-12 if each error is a rounding's
      // mean square; twice that leaves room.
      const double bound =
          AttendsWithTensorCores(problem.shape, dtype, device().compute_capability()) ? 6 * 0x1p-12
                                                                                      : 1e-5;
      const double relative = std::sqrt(difference / magnitude);
      EXPECT_LT(relative, bound) << c.heads << " heads " << c.context << " positions "
                                 << DTypeName(dtype);
      RecordProperty(absl::StrCat("relative_", c.heads, "_", DTypeName(dtype)),
                     absl::StrCat(relative));
    }
  }
}

TEST_F(CudaMlaAttentionTest, ARowIsTheSameToTheBitInAnyBatch) {
  // Three splits; as many rows as make the wide tiles of heads worth while, and so few that not.
  for (const DType dtype : kKvDTypes) {
    Rng rng(9);
    const MlaShape shape = ShapeWithHeads(128);
    const Problem problem(rng, shape, {dtype, 64}, 40, 2090);
    const Problem other(rng, shape, {dtype, 64}, 3, 700);
    const std::vector<float> expected = problem.Run(backend(), 0, 40);
    EXPECT_GT(std::set<float>(expected.begin(), expected.end()).size(), expected.size() / 4);
    for (const int64_t piece : {1, 7}) {
      for (const bool beside_another : {false, true}) {
        if (piece == 1 && beside_another) continue;
        std::vector<float> out;
        for (int64_t row = 0; row < 40; row += piece) {
          const std::vector<float> rows = problem.Run(backend(), row, std::min(piece, 40 - row),
                                                      beside_another ? &other : nullptr);
          out.insert(out.end(), rows.begin(), rows.end());
        }
        ASSERT_EQ(out.size(), expected.size());
        EXPECT_EQ(std::memcmp(out.data(), expected.data(), out.size() * sizeof(float)), 0)
            << DTypeName(dtype) << ", pieces of " << piece << ", beside another " << beside_another;
      }
    }
  }
}

TEST_F(CudaMlaAttentionTest, QueriesOfAnyMagnitudeFitBinary16) {
  // The same scores from queries a power of two larger: the same bits.
  Rng rng(5);
  Problem problem(rng, ShapeWithHeads(16), {DType::kF16, 16}, 2, 50);
  const std::vector<float> expected = problem.Run(backend(), 0, 2);
  for (const int power : {-90, 90}) {
    Problem scaled = problem;
    for (float& value : scaled.q) value = std::ldexp(value, power);
    scaled.shape.softmax_scale = std::ldexp(problem.shape.softmax_scale, -power);
    EXPECT_EQ(scaled.Run(backend(), 0, 2), expected) << "2^" << power;
  }
}

}  // namespace
}  // namespace caravan
