// Embed, RmsNorm, MatMul, Add, Ffn and RoutedExperts against the reference.

#include <cmath>

#include "gmock/gmock.h"
#include "tests/kernels/kernel_testing.h"

namespace caravan {
namespace {

struct TestFfn {
  TestFfn(Rng& rng, DType dtype, int64_t hidden, int64_t inter)
      : gate(TestMatrix::Random(rng, dtype, inter, hidden)),
        up(TestMatrix::Random(rng, dtype, inter, hidden)),
        down(TestMatrix::Random(rng, dtype, hidden, inter)) {}

  FfnWeights view() const { return {gate.view(), up.view(), down.view()}; }

  /// FFN(x) with the error that float arithmetic may add.
  std::vector<Bounded> Bound(const float* x) const {
    std::vector<Bounded> inner =
        MultiplyBounded(gate, 0, gate.view().rows, Exactly(x, gate.view().cols));
    const std::vector<Bounded> ups =
        MultiplyBounded(up, 0, up.view().rows, Exactly(x, up.view().cols));
    for (size_t i = 0; i < inner.size(); ++i) {
      // silu's slope is below 1.1; evaluating it, and the product, take 5 operations, of which exp
      // (glibc: within 1 ulp, 2 units) counts twice.
      const double silu = inner[i].value / (1 + std::exp(-inner[i].value));
      const double value = silu * ups[i].value;
      const double silu_error = 1.1 * inner[i].error + 5 * kUnit * std::abs(silu);
      inner[i].error = silu_error * (std::abs(ups[i].value) + ups[i].error) +
                       std::abs(silu) * ups[i].error + kUnit * std::abs(value) + kTiny;
      inner[i].value = value;
    }
    return MultiplyBounded(down, 0, down.view().rows, inner);
  }

  TestMatrix gate;
  TestMatrix up;
  TestMatrix down;
};

void ExpectMatMulWithinBound(const TestMatrix& w, const std::vector<float>& x, int64_t num_rows,
                             const std::string& what) {
  const Matrix view = w.view();
  std::vector<float> expected(num_rows * view.rows);
  MakeReferenceBackend()->MatMul(view, x.data(), num_rows, expected.data());
  for (const NamedBackend& tested : TestedBackends()) {
    std::vector<float> out(num_rows * view.rows + 1, 77);
    tested.backend->MatMul(view, x.data(), num_rows, out.data());
    for (int64_t t = 0; t < num_rows; ++t) {
      const std::vector<Bounded> bound =
          MultiplyBounded(w, 0, view.rows, Exactly(x.data() + t * view.cols, view.cols));
      for (int64_t r = 0; r < view.rows; ++r) {
        ASSERT_NEAR(out[t * view.rows + r], expected[t * view.rows + r], bound[r].error)
            << tested.name << " row " << t << " column " << r << " of " << what;
      }
    }
    EXPECT_EQ(out.back(), 77) << tested.name << " wrote past the end of " << what;
  }
}

TEST(MatMulTest, StaysWithinTheErrorOfItsSums) {
  for (const DType dtype : kWeightTypes) {
    for (uint64_t seed = 0; seed < 12; ++seed) {
      Rng rng(seed);
      const int64_t rows = RandomInt(rng, 1, 150);
      const int64_t cols = RandomInt(rng, 1, seed % 3 == 0 ? 1200 : 300);
      const int64_t num_rows = RandomInt(rng, 0, 9);
      const TestMatrix w = TestMatrix::Random(rng, dtype, rows, cols);
      ExpectMatMulWithinBound(w, RandomFloats(rng, num_rows * cols), num_rows,
                              absl::StrCat(DTypeName(dtype), " seed ", seed));
    }
  }
}

TEST(MatMulTest, StaysWithinTheErrorOfItsSumsForSubnormalAndLargeValues) {
  for (uint64_t seed = 0; seed < 6; ++seed) {
    Rng rng(seed);
    const int64_t cols = RandomInt(rng, 1, 600);
    const TestMatrix w =
        TestMatrix::FromFloats(19, cols, RandomWideFloats(rng, 19 * cols, seed % 2 ? 55 : -100));
    ExpectMatMulWithinBound(w, RandomWideFloats(rng, 5 * cols, seed % 2 ? 55 : 0), 5,
                            absl::StrCat("seed ", seed));
  }
}

TEST(MatMulTest, IsExactOnSmallIntegers) {
  for (const NamedBackend& tested : AllBackends()) {
    for (const DType dtype : kWeightTypes) {
      Rng rng(7);
      // Partial blocks of 128 at both edges; sums stay far below 2^24.
      const int64_t rows = 133, cols = 2 * 512 + 131, num_rows = 7;
      const TestMatrix w = TestMatrix::RandomIntegers(rng, dtype, rows, cols, 4);
      const TestMatrix x = TestMatrix::RandomIntegers(rng, DType::kF32, num_rows, cols, 8);
      std::vector<float> out(num_rows * rows);
      tested.backend->MatMul(w.view(), reinterpret_cast<const float*>(x.view().data), num_rows,
                             out.data());
      for (int64_t t = 0; t < num_rows; ++t) {
        for (int64_t r = 0; r < rows; ++r) {
          double expected = 0;
          for (int64_t c = 0; c < cols; ++c) expected += x.At(t, c) * w.At(r, c);
          ASSERT_EQ(out[t * rows + r], expected)
              << tested.name << " " << DTypeName(dtype) << " row " << t << " column " << r;
        }
      }
    }
  }
}

TEST(MatMulTest, TakesF8WithoutScalesAsOnes) {
  const uint8_t codes[] = {0x38, 0x40, 0xc0};  // 1, 2, -2
  const Matrix w = {.data = reinterpret_cast<const std::byte*>(codes),
                    .dtype = DType::kF8E4M3,
                    .rows = 1,
                    .cols = 3};
  const float x[] = {3, 5, 7};
  for (const NamedBackend& tested : AllBackends()) {
    float out = 0;
    tested.backend->MatMul(w, x, 1, &out);
    EXPECT_EQ(out, 3 + 10 - 14) << tested.name;
  }
}

TEST(MatMulTest, HoldsAtTheShapesOfR1) {
  Rng rng(11);
  const TestMatrix w = TestMatrix::Random(rng, DType::kF8E4M3, 576, 7168);  // kv_a_proj_with_mqa
  ExpectMatMulWithinBound(w, RandomFloats(rng, 2 * 7168), 2, "kv_a");
}

TEST(EmbedTest, CopiesTheRowsOfTheTable) {
  for (const DType dtype : kWeightTypes) {
    Rng rng(12);
    const TestMatrix table = TestMatrix::Random(rng, dtype, 140, 201);
    const std::vector<int32_t> ids = {139, 0, 7, 7};
    for (const NamedBackend& tested : AllBackends()) {
      std::vector<float> out(ids.size() * 201);
      tested.backend->Embed(table.view(), ids, out.data());
      for (size_t t = 0; t < ids.size(); ++t) {
        for (int64_t c = 0; c < 201; ++c) {
          ASSERT_EQ(out[t * 201 + c], static_cast<float>(table.At(ids[t], c)))
              << tested.name << " " << DTypeName(dtype);
        }
      }
    }
  }
}

TEST(RmsNormTest, StaysWithinTheErrorOfItsSumAndWorksInPlace) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    Rng rng(seed);
    const int64_t width = RandomInt(rng, 1, 900);
    const int64_t num_rows = RandomInt(rng, 0, 5);
    const std::vector<float> x = RandomFloats(rng, num_rows * width, seed % 2 ? 1e-3f : 1e3f);
    const std::vector<float> weight = RandomFloats(rng, width);
    std::vector<float> expected(x.size());
    MakeReferenceBackend()->RmsNorm(x.data(), num_rows, width, weight.data(), 1e-6f,
                                    expected.data());
    // A sum of squares in 8 lanes, then a square root, which halves its relative error, and six
    // operations more.
    const double relative = (static_cast<double>(width) / 16 + 3 + 8) * kUnit;
    for (const NamedBackend& tested : TestedBackends()) {
      std::vector<float> out = x;
      tested.backend->RmsNorm(out.data(), num_rows, width, weight.data(), 1e-6f, out.data());
      for (size_t i = 0; i < out.size(); ++i) {
        ASSERT_NEAR(out[i], expected[i], relative * std::abs(expected[i]))
            << tested.name << " seed " << seed << " value " << i;
      }
    }
  }
}

TEST(RmsNormTest, NormsAHandWorkedRow) {
  const float x[] = {1, -7};  // mean square 25
  const float weight[] = {10, 5};
  for (const NamedBackend& tested : AllBackends()) {
    float out[2];
    tested.backend->RmsNorm(x, 1, 2, weight, 0, out);
    EXPECT_FLOAT_EQ(out[0], 2) << tested.name;
    EXPECT_FLOAT_EQ(out[1], -7) << tested.name;
  }
}

TEST(AddTest, AddsEachValue) {
  for (const NamedBackend& tested : AllBackends()) {
    std::vector<float> x(37), y(37);
    for (int i = 0; i < 37; ++i) {
      x[i] = static_cast<float>(i);
      y[i] = static_cast<float>(100 * i);
    }
    tested.backend->Add(x.data(), 37, y.data());
    for (int i = 0; i < 37; ++i) EXPECT_EQ(y[i], static_cast<float>(101 * i)) << tested.name;
  }
}

TEST(FfnTest, StaysWithinTheErrorOfItsParts) {
  for (const DType dtype : kWeightTypes) {
    for (uint64_t seed = 0; seed < 5; ++seed) {
      Rng rng(seed);
      const int64_t hidden = RandomInt(rng, 1, 300);
      const int64_t inter = RandomInt(rng, 1, 150);
      const int64_t num_rows = RandomInt(rng, 0, 6);
      const TestFfn ffn(rng, dtype, hidden, inter);
      const std::vector<float> x = RandomFloats(rng, num_rows * hidden);
      std::vector<float> expected(x.size());
      MakeReferenceBackend()->Ffn(ffn.view(), x.data(), num_rows, expected.data());
      for (const NamedBackend& tested : TestedBackends()) {
        std::vector<float> out(x.size(), 77);
        tested.backend->Ffn(ffn.view(), x.data(), num_rows, out.data());
        for (int64_t t = 0; t < num_rows; ++t) {
          const std::vector<Bounded> bound = ffn.Bound(x.data() + t * hidden);
          for (int64_t c = 0; c < hidden; ++c) {
            ASSERT_NEAR(out[t * hidden + c], expected[t * hidden + c], bound[c].error)
                << tested.name << " " << DTypeName(dtype) << " seed " << seed << " row " << t;
          }
        }
      }
    }
  }
}

TEST(RoutedExpertsTest, StaysWithinTheErrorOfItsParts) {
  for (const DType dtype : kWeightTypes) {
    for (uint64_t seed = 0; seed < 4; ++seed) {
      Rng rng(seed);
      const int64_t hidden = RandomInt(rng, 1, 200);
      const int64_t inter = RandomInt(rng, 1, 90);
      const int64_t num_rows = seed == 0 ? 0 : RandomInt(rng, 1, 20);
      const int64_t num_experts = 5, k = 2;
      std::vector<TestFfn> ffns;
      std::vector<FfnWeights> views;
      for (int64_t e = 0; e < num_experts; ++e) ffns.emplace_back(rng, dtype, hidden, inter);
      for (const TestFfn& ffn : ffns) views.push_back(ffn.view());
      views[3] = FfnWeights{};  // never chosen, so never touched
      const std::vector<float> x = RandomFloats(rng, num_rows * hidden);
      const std::vector<float> before = RandomFloats(rng, num_rows * hidden);
      const std::vector<float> weights = RandomFloats(rng, num_rows * k);
      std::vector<int32_t> ids;
      for (int64_t t = 0; t < num_rows; ++t) {
        ids.push_back(static_cast<int32_t>(RandomInt(rng, 0, 1)));
        ids.push_back(static_cast<int32_t>(rng() % 2 ? 2 : 4));
      }
      std::vector<float> expected = before;
      RunResidentExperts(*MakeReferenceBackend(), views, x.data(), num_rows, ids.data(),
                         weights.data(), k, expected.data());
      for (const NamedBackend& tested : TestedBackends()) {
        std::vector<float> out = before;
        RunResidentExperts(*tested.backend, views, x.data(), num_rows, ids.data(), weights.data(),
                           k, out.data());
        for (int64_t t = 0; t < num_rows; ++t) {
          std::vector<double> error(hidden), magnitude(hidden);
          for (int64_t i = t * k; i < (t + 1) * k; ++i) {
            const std::vector<Bounded> y = ffns[ids[i]].Bound(x.data() + t * hidden);
            for (int64_t c = 0; c < hidden; ++c) {
              error[c] += std::abs(weights[i]) * y[c].error;
              magnitude[c] += std::abs(weights[i] * y[c].value);
            }
          }
          for (int64_t c = 0; c < hidden; ++c) {
            // A product and at most k + 1 additions, and the expected value's own rounding.
            const double sums = (k + 3) * kUnit * (magnitude[c] + std::abs(before[t * hidden + c]));
            ASSERT_NEAR(out[t * hidden + c], expected[t * hidden + c], error[c] + sums)
                << tested.name << " " << DTypeName(dtype) << " seed " << seed << " row " << t;
          }
        }
      }
    }
  }
}

TEST(RoutedExpertsTest, WeighsAHandWorkedCase) {
  // hidden 1, inter 1, gate 64: silu(64 x) is 64 x in float for x = 1. FFN_e(1) = 64 * up * down.
  const float gate[] = {64}, up[] = {2}, downs[] = {1, 10, 100};
  const auto one = [](const float* value) {
    return Matrix{.data = reinterpret_cast<const std::byte*>(value), .rows = 1, .cols = 1};
  };
  std::vector<FfnWeights> experts;
  for (const float& down : downs) experts.push_back({one(gate), one(up), one(&down)});
  const float x[] = {1, 1};
  const int32_t ids[] = {0, 2, 1, 2};
  const float weights[] = {0.5f, 0.25f, 1, 0.5f};
  for (const NamedBackend& tested : AllBackends()) {
    float out[] = {1000, 0};
    RunResidentExperts(*tested.backend, experts, x, 2, ids, weights, 2, out);
    EXPECT_EQ(out[0], 1000 + 128 * (0.5f + 25)) << tested.name;
    EXPECT_EQ(out[1], 128 * (10 + 50)) << tested.name;
  }
}

}  // namespace
}  // namespace caravan
