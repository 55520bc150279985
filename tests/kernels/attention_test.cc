// RotateQueries, WriteKv and MlaAttention, by hand and against the reference's expanded form.

#include <cmath>
#include <complex>

#include "gmock/gmock.h"
#include "tests/kernels/attention_testing.h"

namespace caravan {
namespace {

using ::testing::Each;

TEST(RotateQueriesTest, TurnsEachPairAsAComplexNumber) {
  const MlaShape shape = {.num_heads = 3, .qk_nope_head_dim = 5, .qk_rope_head_dim = 6};
  const std::vector<float> inv_freq = {1, 0.1f, 0.003f};
  const RopeTable rope = {inv_freq, 1.25f};
  Rng rng(1);
  const std::vector<float> before = RandomFloats(rng, 6 * 3 * 11);
  // Rows 1 and 2 are at 163839 and on, rows 4 and 5 at 0 and 1; nobody owns rows 0 and 3.
  const std::vector<SequenceRows> sequences = {{1, 2, 163839, {}}, {4, 2, 0, {}}};
  const int64_t positions[] = {-1, 163839, 163840, -1, 0, 1};
  for (const NamedBackend& tested : AllBackends()) {
    std::vector<float> q = before;
    tested.backend->RotateQueries(shape, rope, sequences, q.data());
    for (int64_t i = 0; i < 6 * 3 * 11; ++i) {
      const int64_t row = i / 33, dim = i % 11 - 5;
      if (positions[row] < 0 || dim < 0) {
        ASSERT_EQ(q[i], before[i]) << tested.name << " value " << i;
        continue;
      }
      const int64_t even = i - dim % 2;
      const double angle = static_cast<double>(positions[row]) * inv_freq[dim / 2];
      const std::complex<double> turned =
          std::complex<double>(before[even], before[even + 1]) * std::polar(1.25, angle);
      // Two products of rounded factors below 1.25, and their sum, rounded.
      ASSERT_NEAR(q[i], dim % 2 == 0 ? turned.real() : turned.imag(), 8 * 1.25 * kUnit)
          << tested.name << " row " << row << " dimension " << dim;
    }
  }
}

TEST(WriteKvTest, FillsTheCacheAcrossBlocksAndNothingElse) {
  const MlaShape shape = {.qk_rope_head_dim = 4, .kv_lora_rank = 7};
  const std::vector<float> inv_freq = {1, 0.01f};
  const RopeTable rope = TestRope(inv_freq);
  Rng rng(2);
  const std::vector<float> norm = RandomFloats(rng, 7);
  const std::vector<float> kv_a = RandomFloats(rng, 9 * 11);
  for (const NamedBackend& tested : AllBackends()) {
    const KvLayout kv = {DType::kF32, 4};
    TestCache first(shape, kv, 12), second(shape, kv, 4);
    // Row 0 and rows 3..8 in use: positions 2 of one sequence, 2..7 of another.
    const std::vector<SequenceRows> sequences = {second.Rows(0, 1, 2), first.Rows(3, 6, 2)};
    tested.backend->WriteKv(shape, rope, norm.data(), 1e-5f, sequences, kv, kv_a.data());
    const auto expect_row = [&](int64_t row, int64_t position, const std::vector<float>& cached) {
      std::vector<float> normed(7);
      tested.backend->RmsNorm(kv_a.data() + row * 11, 1, 7, norm.data(), 1e-5f, normed.data());
      EXPECT_EQ(std::vector<float>(cached.begin(), cached.begin() + 7), normed)
          << tested.name << " row " << row;
      for (int64_t i = 0; i < 2; ++i) {
        const float* pair = kv_a.data() + row * 11 + 7 + 2 * i;
        const std::complex<double> turned =
            std::complex<double>(pair[0], pair[1]) *
            std::polar(1.0, static_cast<double>(position) * inv_freq[i]);
        EXPECT_NEAR(cached[7 + 2 * i], turned.real(), 8 * kUnit) << tested.name;
        EXPECT_NEAR(cached[8 + 2 * i], turned.imag(), 8 * kUnit) << tested.name;
      }
    };
    expect_row(0, 2, second.Row(2));
    for (int64_t i = 0; i < 6; ++i) expect_row(3 + i, 2 + i, first.Row(2 + i));
    for (const auto& untouched : {first.Row(1), first.Row(8), second.Row(1), second.Row(3)}) {
      EXPECT_THAT(untouched, Each(testing::IsNan())) << tested.name;
    }
  }
}

TEST(WriteKvTest, StoresTheSameRowInEveryFormat) {
  const MlaShape shape = {.qk_rope_head_dim = 32, .kv_lora_rank = 96};
  const std::vector<float> inv_freq = TestInvFreq(32);
  Rng rng(3);
  const std::vector<float> norm = RandomFloats(rng, 96), kv_a = RandomFloats(rng, 5 * 128, 4);
  for (const NamedBackend& tested : AllBackends()) {
    TestCache plain(shape, {DType::kF32, 3}, 9);
    const auto write = [&](TestCache& cache) {
      const std::vector<SequenceRows> sequences = {cache.Rows(0, 5, 2)};
      tested.backend->WriteKv(shape, TestRope(inv_freq), norm.data(), 1e-5f, sequences, cache.kv(),
                              kv_a.data());
    };
    write(plain);
    for (const DType dtype : {DType::kF16, DType::kQ8_0}) {
      TestCache cache(shape, {dtype, 3}, 9), expected(shape, {dtype, 3}, 9);
      write(cache);
      for (int64_t p = 2; p < 7; ++p) expected.Write(p, plain.Row(p));
      for (int64_t p = 2; p < 7; ++p) {
        EXPECT_EQ(cache.Row(p), expected.Row(p)) << tested.name << " " << DTypeName(dtype);
      }
      for (const int64_t untouched : {0, 1, 7, 8}) {
        EXPECT_THAT(cache.Row(untouched), Each(testing::IsNan())) << tested.name;
      }
    }
  }
}

TEST(MlaAttentionTest, WorksAHandWorkedCase) {
  // One head; nope 1, rope 2, v 1, latent 2. Key = latent[0], value = 10 latent[0] + latent[1].
  const MlaShape shape = {.num_heads = 1,
                          .qk_nope_head_dim = 1,
                          .qk_rope_head_dim = 2,
                          .v_head_dim = 1,
                          .kv_lora_rank = 2,
                          .softmax_scale = 0.5f};
  const TestMatrix kv_b = TestMatrix::FromFloats(2, 2, {1, 0, 10, 1});
  const float ln2 = std::log(2.0f);
  for (const NamedBackend& tested : AllBackends()) {
    TestCache cache(shape, {DType::kF32, 2}, 3);
    cache.Write(0, {0, 1, 0, 0});
    cache.Write(1, {2 * ln2, 2, 0, 0});
    cache.Write(2, {0, 5, 0, 2 * ln2});
    const float q[] = {1, 0, 0, 1, 7, 1};  // the rows at positions 1 and 2
    const std::vector<SequenceRows> sequences = {cache.Rows(0, 2, 1)};
    float out[2];
    tested.backend->MlaAttention(shape, kv_b.view(), sequences, cache.kv(), q, out);
    // Scores ln 1, ln 2 (, ln 2): weights 1, 2 (, 2). Values 1, 20 ln 2 + 2, 5.
    const double second = 20 * std::log(2.0) + 2;
    EXPECT_NEAR(out[0], (1 + 2 * second) / 3, 2e-5) << tested.name;
    EXPECT_NEAR(out[1], (1 + 2 * second + 2 * 5) / 5, 2e-5) << tested.name;
  }
}

/// Error bounds of absorbed attention for one row and head, term by term. It is a third way to the
/// result (absorbed, in double); its values are compared with the reference's too.
std::vector<Bounded> BoundAttention(const MlaShape& shape, const TestMatrix& kv_b, int64_t head,
                                    const TestCache& cache, int64_t num_positions,
                                    const float* query) {
  const int64_t latent = shape.kv_lora_rank, nope = shape.qk_nope_head_dim;
  const int64_t first_key = head * (nope + shape.v_head_dim);
  const DType kv_dtype = cache.kv().dtype;
  const AttentionRounding rounding = AttentionRoundingOf(shape, kv_dtype, num_positions);
  // Of a binary16: relative, and absolute where it is subnormal.
  const double half = rounding.halves ? 0x1p-11 : 0;
  const double half_tiny = rounding.halves ? 0x1p-25 : 0;
  const bool rounds_cache = rounding.halves && kv_dtype == DType::kQ8_0;
  const auto cached_error = [&](double value) {
    return rounds_cache ? half * std::abs(value) + half_tiny : 0;
  };
  // The query in the latent space: a plain sum over nope, its terms' weights rounded once.
  std::vector<Bounded> absorbed(shape.kv_width());
  for (int64_t c = 0; c < latent; ++c) {
    double magnitude = 0;
    for (int64_t i = 0; i < nope; ++i) {
      absorbed[c].value += query[i] * kv_b.At(first_key + i, c);
      magnitude += std::abs(query[i] * kv_b.At(first_key + i, c));
    }
    absorbed[c].error = static_cast<double>(nope + 3) * (kUnit * magnitude + kTiny);
  }
  for (int64_t i = 0; i < shape.qk_rope_head_dim; ++i) absorbed[latent + i].value = query[nope + i];
  // As binary16 it is first brought to [1, 2), by its largest value.
  double largest = 0;
  for (const Bounded& value : absorbed) {
    largest = std::max(largest, std::abs(value.value) + value.error);
  }
  for (Bounded& value : absorbed) {
    value.error += half * (std::abs(value.value) + value.error) + half_tiny * largest;
  }

  std::vector<Bounded> scores(num_positions);
  double max = -INFINITY, min = INFINITY, worst = 0;
  // One chain over the whole width.
  const double depth = static_cast<double>(shape.kv_width()) + 1;
  for (int64_t p = 0; p < num_positions; ++p) {
    const std::vector<float> row = cache.Row(p);
    double magnitude = 0;
    for (int64_t c = 0; c < shape.kv_width(); ++c) {
      const double key = row[c];
      scores[p].value += absorbed[c].value * key;
      scores[p].error += absorbed[c].error * (std::abs(key) + cached_error(key)) +
                         std::abs(absorbed[c].value) * cached_error(key);
      magnitude += std::abs(absorbed[c].value * key);
    }
    // Scaled with one more rounding.
    scores[p].error =
        shape.softmax_scale * (scores[p].error + (depth + 1) * (kUnit * magnitude + kTiny));
    scores[p].value *= shape.softmax_scale;
    max = std::max(max, scores[p].value);
    min = std::min(min, scores[p].value);
    worst = std::max(worst, scores[p].error);
  }
  // Each exponential is off by its argument's errors: its own score's and the maximum's, and the
  // rounding of their difference, at first and in each correction (which add up to the range of
  // the scores); and by 4 units for exp (2 units in the last place) and 1 for the product, once
  // and then at most once for each tile, where the maximum rises, and each span, which is merged.
  // Weights that are all within +-e of theirs give a mean within 2 e of the mean magnitude, besides
  // the sums' own rounding, above and below the line.
  const double corrections = rounding.corrections;
  const double exponent_error =
      2 * worst + kUnit * (max - min + 4 * worst) + 5 * kUnit * (corrections + 1);
  const double weight_error = std::expm1(exponent_error) + half;
  const double sum_error = 2 * (static_cast<double>(num_positions) + corrections + 3) * kUnit;
  EXPECT_LT(weight_error, rounding.halves ? 1 : 0.05) << "the bound would say little";
  std::vector<Bounded> mean(latent);
  std::vector<double> mean_rounding(latent);  // of the cached values
  double total = 0;
  double magnitude = 0;  // the largest
  for (int64_t p = 0; p < num_positions; ++p) {
    const std::vector<float> row = cache.Row(p);
    const double weight = std::exp(scores[p].value - max);
    total += weight;
    for (int64_t c = 0; c < latent; ++c) {
      mean[c].value += weight * row[c];
      mean[c].error += weight * std::abs(row[c]);
      mean_rounding[c] += weight * cached_error(row[c]);
      magnitude = std::max<double>(magnitude, std::abs(row[c]));
    }
  }
  for (int64_t c = 0; c < latent; ++c) {
    mean[c].value /= total;
    // Weights below 2^-124 may be 0 (as binary16 they are off by 2^-25 of the largest), and
    // products of small values.
    mean[c].error = mean[c].error / total * 1.01 * (2 * weight_error + sum_error) +
                    mean_rounding[c] / total * (1 + 2 * weight_error) +
                    magnitude * static_cast<double>(num_positions) * (0x1p-124 + 2 * half_tiny) +
                    static_cast<double>(num_positions) * kTiny;
  }
  return MultiplyBounded(kv_b, first_key + nope, shape.v_head_dim, mean);
}

struct AttentionProblem {
  MlaShape shape;
  DType dtype = DType::kF32;  // of kv_b
  KvLayout kv = {DType::kF32, 16};
  // Rows and first position of each sequence.
  std::vector<std::pair<int64_t, int64_t>> sequences;
  bool wide = false;  // cached values and queries from subnormal to 8
};

void ExpectAttentionWithinBound(const AttentionProblem& problem, uint64_t seed) {
  const MlaShape& shape = problem.shape;
  Rng rng(seed);
  const TestMatrix kv_b = TestMatrix::Random(
      rng, problem.dtype, shape.num_heads * (shape.qk_nope_head_dim + shape.v_head_dim),
      shape.kv_lora_rank);
  std::vector<TestCache> caches;
  std::vector<SequenceRows> sequences;
  int64_t num_rows = 0;
  for (const auto& [rows, first_position] : problem.sequences) {
    caches.emplace_back(shape, problem.kv, first_position + rows);
    for (int64_t p = 0; p < first_position + rows; ++p) {
      caches.back().Write(p, problem.wide ? RandomWideFloats(rng, shape.kv_width(), 3)
                                          : RandomFloats(rng, shape.kv_width()));
    }
  }
  for (size_t s = 0; s < caches.size(); ++s) {
    const auto [rows, first_position] = problem.sequences[s];
    sequences.push_back(caches[s].Rows(num_rows, rows, first_position));
    num_rows += rows;
  }
  const int64_t q_values = num_rows * shape.num_heads * shape.q_head_dim();
  const std::vector<float> q =
      problem.wide ? RandomWideFloats(rng, q_values, 3) : RandomFloats(rng, q_values);
  std::vector<float> expected(num_rows * shape.num_heads * shape.v_head_dim);
  MakeReferenceBackend()->MlaAttention(shape, kv_b.view(), sequences, problem.kv, q.data(),
                                       expected.data());
  const std::vector<NamedBackend> backends = TestedBackends();
  std::vector<std::vector<float>> outs;
  for (const NamedBackend& tested : backends) {
    outs.emplace_back(expected.size(), 77.0f);
    tested.backend->MlaAttention(shape, kv_b.view(), sequences, problem.kv, q.data(),
                                 outs.back().data());
  }
  for (size_t s = 0; s < sequences.size(); ++s) {
    for (int64_t i = 0; i < sequences[s].num_rows; ++i) {
      for (int64_t head = 0; head < shape.num_heads; ++head) {
        const int64_t at = (sequences[s].first_row + i) * shape.num_heads + head;
        const std::vector<Bounded> bound =
            BoundAttention(shape, kv_b, head, caches[s], sequences[s].first_position + i + 1,
                           q.data() + at * shape.q_head_dim());
        for (int64_t d = 0; d < shape.v_head_dim; ++d) {
          const double reference = expected[at * shape.v_head_dim + d];
          ASSERT_NEAR(reference, bound[d].value, bound[d].error) << "reference, seed " << seed;
          for (size_t b = 0; b < outs.size(); ++b) {
            ASSERT_NEAR(outs[b][at * shape.v_head_dim + d], reference, bound[d].error)
                << backends[b].name << " seed " << seed << " sequence " << s << " row " << i
                << " head " << head;
          }
        }
      }
    }
  }
}

TEST(MlaAttentionTest, StaysWithinTheErrorOfItsParts) {
  for (uint64_t seed = 0; seed < 36; ++seed) {
    Rng rng(seed + 1000);
    AttentionProblem problem;
    problem.wide = seed % 5 == 4;
    problem.shape = {.num_heads = RandomInt(rng, 1, 19),
                     .qk_nope_head_dim = RandomInt(rng, 1, 40),
                     .qk_rope_head_dim = 2 * RandomInt(rng, 1, 9),
                     .v_head_dim = RandomInt(rng, 1, 40),
                     .kv_lora_rank = RandomInt(rng, 1, 140),
                     .softmax_scale = 0.2f};
    problem.dtype = kWeightTypes[seed % 4];
    problem.kv = {kKvDTypes[seed / 4 % 3], RandomInt(rng, 1, 33)};
    if (problem.kv.dtype == DType::kQ8_0) {
      problem.shape.qk_rope_head_dim = 32 * RandomInt(rng, 1, 2);
      problem.shape.kv_lora_rank = 32 * RandomInt(rng, 1, 4);
    }
    for (int64_t s = RandomInt(rng, 0, 3); s >= 0; --s) {
      problem.sequences.push_back({RandomInt(rng, 0, 12), RandomInt(rng, 0, 150)});
    }
    // Past a span of positions, in some.
    if (seed % 6 == 5)
      problem.sequences.push_back({RandomInt(rng, 1, 3), RandomInt(rng, 250, 800)});
    ExpectAttentionWithinBound(problem, seed);
  }
}

TEST(MlaAttentionTest, HoldsAtTheShapeOfR1) {
  AttentionProblem problem;
  problem.kv = {DType::kQ8_0, 64};
  problem.shape = {.num_heads = 128,
                   .qk_nope_head_dim = 128,
                   .qk_rope_head_dim = 64,
                   .v_head_dim = 128,
                   .kv_lora_rank = 512,
                   .softmax_scale = 0.1352f};
  problem.dtype = DType::kF8E4M3;
  problem.sequences = {{2, 1}};
  ExpectAttentionWithinBound(problem, 5);
}

TEST(MlaAttentionTest, SurvivesScoresFarApart) {
  // Scores of -3e4 to 3e4: only differences are exponentiated, whichever comes first.
  const MlaShape shape = {.num_heads = 1,
                          .qk_nope_head_dim = 1,
                          .qk_rope_head_dim = 2,
                          .v_head_dim = 1,
                          .kv_lora_rank = 1,
                          .softmax_scale = 1};
  const TestMatrix kv_b = TestMatrix::FromFloats(2, 1, {1, 1});
  for (const NamedBackend& tested : AllBackends()) {
    for (const float sign : {-1.0f, 1.0f}) {
      TestCache cache(shape, {DType::kF32, 16}, 200);
      for (int64_t p = 0; p < 200; ++p) cache.Write(p, {sign * static_cast<float>(p - 100), 0, 0});
      const float q[] = {300, 0, 0};
      const std::vector<SequenceRows> sequences = {cache.Rows(0, 1, 199)};
      float out = 0;
      tested.backend->MlaAttention(shape, kv_b.view(), sequences, cache.kv(), q, &out);
      EXPECT_EQ(out, sign > 0 ? 99 : 100) << tested.name;
    }
  }
}

}  // namespace
}  // namespace caravan
