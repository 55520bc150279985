#include "kernels/observing_backend.h"

#include <cmath>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/kernels/attention_testing.h"

namespace caravan {
namespace {

constexpr int64_t kHidden = 24;
constexpr int64_t kInter = 16;

/// All rows of each matrix, one after another.
class RecordingObserver : public InputObserver {
 public:
  void Observe(const Matrix& w, const float* rows, int64_t num_rows) override {
    std::vector<float>& all = rows_of[w.data];
    all.insert(all.end(), rows, rows + num_rows * w.cols);
  }

  std::map<const std::byte*, std::vector<float>> rows_of;
};

struct TestFfn {
  explicit TestFfn(Rng& rng)
      : gate(TestMatrix::Random(rng, DType::kF32, kInter, kHidden)),
        up(TestMatrix::Random(rng, DType::kF32, kInter, kHidden)),
        down(TestMatrix::Random(rng, DType::kF32, kHidden, kInter)) {}

  FfnWeights view() const { return {gate.view(), up.view(), down.view()}; }

  /// silu(gate x) * (up x) of one row, in double.
  std::vector<double> Middle(const float* x) const {
    std::vector<double> middle;
    for (int64_t i = 0; i < kInter; ++i) {
      double g = 0;
      double u = 0;
      for (int64_t j = 0; j < kHidden; ++j) {
        g += gate.At(i, j) * static_cast<double>(x[j]);
        u += up.At(i, j) * static_cast<double>(x[j]);
      }
      middle.push_back(g / (1 + std::exp(-g)) * u);
    }
    return middle;
  }

  TestMatrix gate;
  TestMatrix up;
  TestMatrix down;
};

void ExpectMiddle(const std::vector<float>& observed, const TestFfn& ffn,
                  const std::vector<float>& x) {
  ASSERT_EQ(observed.size(), x.size() / kHidden * kInter);
  for (size_t row = 0; row < x.size() / kHidden; ++row) {
    const std::vector<double> middle = ffn.Middle(x.data() + row * kHidden);
    for (size_t i = 0; i < middle.size(); ++i) {
      // Two products of 24 terms of magnitude 1 at most, each SumDepth roundings deep, of which
      // silu at most doubles the first's, times a factor of at most 24; and a few roundings more.
      EXPECT_NEAR(observed[row * kInter + i], middle[i],
                  kUnit * 3 * SumDepth(kHidden) * kHidden * kHidden);
    }
  }
}

TEST(ObservingBackendTest, ShowsWhatMatricesAreMultipliedWithAndChangesNothing) {
  Rng rng(1);
  const TestFfn ffn(rng);
  const std::vector<float> x = RandomFloats(rng, 3 * kHidden);
  RecordingObserver observer;
  const auto observing = MakeObservingBackend(CpuBackendFor(CpuIsa::kPortable, 1), &observer);
  const auto plain = CpuBackendFor(CpuIsa::kPortable, 1);
  std::vector<float> out(3 * kHidden);
  std::vector<float> expected(3 * kHidden);
  observing->Ffn(ffn.view(), x.data(), 3, out.data());
  plain->Ffn(ffn.view(), x.data(), 3, expected.data());
  EXPECT_EQ(out, expected);
  EXPECT_EQ(observer.rows_of[ffn.gate.view().data], x);
  EXPECT_EQ(observer.rows_of[ffn.up.view().data], x);
  ExpectMiddle(observer.rows_of[ffn.down.view().data], ffn, x);

  observer.rows_of.clear();
  observing->MatMul(ffn.down.view(), x.data(), 2, out.data());
  plain->MatMul(ffn.down.view(), x.data(), 2, expected.data());
  EXPECT_EQ(out, expected);
  const std::vector<float> rows(x.begin(), x.begin() + 2 * kInter);
  EXPECT_EQ(observer.rows_of[ffn.down.view().data], rows);
}

TEST(ObservingBackendTest, ShowsEachExpertTheRowsThatChoseIt) {
  Rng rng(2);
  const std::vector<TestFfn> experts = {TestFfn(rng), TestFfn(rng), TestFfn(rng)};
  std::vector<FfnWeights> views;
  for (const TestFfn& expert : experts) views.push_back(expert.view());
  const std::vector<float> x = RandomFloats(rng, 3 * kHidden);
  const std::vector<int32_t> ids = {0, 2, 0, 2, 0, 2};
  const std::vector<float> weights = RandomFloats(rng, 6);
  RecordingObserver observer;
  const auto observing = MakeObservingBackend(CpuBackendFor(CpuIsa::kPortable, 1), &observer);
  std::vector<float> out(3 * kHidden);
  std::vector<float> expected(3 * kHidden);
  RunResidentExperts(*observing, views, x.data(), 3, ids.data(), weights.data(), 2, out.data());
  RunResidentExperts(*CpuBackendFor(CpuIsa::kPortable, 1), views, x.data(), 3, ids.data(),
                     weights.data(), 2, expected.data());
  EXPECT_EQ(out, expected);
  for (const size_t expert : {size_t{0}, size_t{2}}) {
    EXPECT_EQ(observer.rows_of[experts[expert].gate.view().data], x);
    ExpectMiddle(observer.rows_of[experts[expert].down.view().data], experts[expert], x);
  }
  EXPECT_FALSE(observer.rows_of.contains(experts[1].gate.view().data));

  observer.rows_of.clear();
  const std::vector<int32_t> last = {0, 1, 0, 1, 1, 2};
  RunResidentExperts(*observing, views, x.data(), 3, last.data(), weights.data(), 2, out.data());
  const std::vector<float> third(x.begin() + 2 * kHidden, x.end());
  EXPECT_EQ(observer.rows_of[experts[2].gate.view().data], third);
}

TEST(ObservingBackendTest, ShowsKvBTheLatentsThatAreNew) {
  Rng rng(3);
  MlaShape shape = {.num_heads = 2,
                    .qk_nope_head_dim = 8,
                    .qk_rope_head_dim = 4,
                    .v_head_dim = 8,
                    .kv_lora_rank = 16,
                    .softmax_scale = 0.3f};
  const TestMatrix kv_b = TestMatrix::Random(rng, DType::kF32, 2 * 16, 16);
  TestCache cache(shape, {DType::kF32, 4}, 8);
  const std::vector<float> inv_freq = TestInvFreq(4);
  const std::vector<float> norm(16, 1.0f);
  RecordingObserver observer;
  const auto backend = MakeObservingBackend(MakeReferenceBackend(), &observer);
  std::vector<float> out(5 * 16);
  const std::vector<float> query = RandomFloats(rng, 5 * 2 * 12);
  for (const auto& [first, rows] :
       {std::pair(int64_t{0}, int64_t{5}), std::pair(int64_t{5}, int64_t{2})}) {
    const std::vector<float> kv_a = RandomFloats(rng, rows * shape.kv_width());
    const SequenceRows sequence = cache.Rows(0, rows, first);
    backend->WriteKv(shape, TestRope(inv_freq), norm.data(), 1e-6f, {&sequence, 1}, cache.kv(),
                     kv_a.data());
    observer.rows_of.clear();
    backend->MlaAttention(shape, kv_b.view(), {&sequence, 1}, cache.kv(), query.data(), out.data());
    std::vector<float> latents;
    for (int64_t i = 0; i < rows; ++i) {
      const std::vector<float> row = cache.Row(first + i);
      latents.insert(latents.end(), row.begin(), row.begin() + 16);
    }
    EXPECT_EQ(observer.rows_of[kv_b.view().data], latents);
  }
}

}  // namespace
}  // namespace caravan
