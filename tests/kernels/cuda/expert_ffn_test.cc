// Experts on the device: what they compute is what products of their matrices give, to the bit.

#include "kernels/cuda/expert_ffn.h"

#include <cstring>
#include <set>

#include "gmock/gmock.h"
#include "tests/kernels/cuda/product_testing.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

/// Types of gate, up and down.
struct FfnTypes {
  DType gate, up, down;
};

std::string NameOf(const FfnTypes& types) {
  return absl::StrCat(DTypeName(types.gate), ", ", DTypeName(types.up), ", ",
                      DTypeName(types.down));
}

/// Gives experts in batches of a number, ascending or from the last to the first.
class PiecemealExperts : public ExpertBatches {
 public:
  PiecemealExperts(std::vector<LoadedExpert> experts, size_t piece, bool ascending)
      : experts_(std::move(experts)), piece_(piece), ascending_(ascending) {
    if (!ascending) std::reverse(experts_.begin(), experts_.end());
  }
  absl::StatusOr<absl::Span<const LoadedExpert>> Next() override {
    const absl::Span<const LoadedExpert> next =
        absl::MakeConstSpan(experts_).subspan(given_, piece_);
    given_ += next.size();
    return next;
  }
  bool ascending() const override { return ascending_; }

 private:
  std::vector<LoadedExpert> experts_;
  size_t piece_;
  bool ascending_;
  size_t given_ = 0;
};

class CudaExpertFfnTest : public CudaProductTest {
 protected:
  FfnWeights Random(Rng& rng, const FfnTypes& types, int64_t hidden, int64_t inter) {
    return {Upload(RandomWeights(rng, types.gate, inter, hidden)),
            Upload(RandomWeights(rng, types.up, inter, hidden)),
            Upload(RandomWeights(rng, types.down, hidden, inter))};
  }

  std::unique_ptr<CudaExpertFfn> Make(const CudaFfnLimits& limits) {
    absl::StatusOr<std::unique_ptr<CudaExpertFfn>> ffn = CudaExpertFfn::Create(stream(), limits);
    EXPECT_TRUE(ffn.ok()) << ffn.status();
    return *std::move(ffn);
  }

  std::vector<float> Dense(CudaExpertFfn& ffn, const FfnWeights& weights,
                           const std::vector<float>& x, int64_t num_rows) {
    const DeviceBuffer rows = ToDevice(x);
    const DeviceBuffer out = Poisoned<float>(num_rows * weights.down.rows);
    const absl::Status status = ffn.RunDense(weights, rows.as<float>(), num_rows, out.as<float>());
    EXPECT_TRUE(status.ok()) << status;
    return ToHost<float>(out);
  }

  /// `out` with the experts' sums added. Every row's ids are among the experts'.
  std::vector<float> Routed(CudaExpertFfn& ffn, ExpertBatches& experts, const std::vector<float>& x,
                            const std::vector<int32_t>& ids, const std::vector<float>& weights,
                            int64_t k, const std::vector<float>& out) {
    const DeviceBuffer rows = ToDevice(x), device_ids = ToDevice(ids),
                       device_weights = ToDevice(weights), sums = ToDevice(out);
    const absl::Status status =
        ffn.RunExperts(experts, rows.as<float>(), std::ssize(ids) / k, device_ids.as<int32_t>(),
                       device_weights.as<float>(), k, sums.as<float>());
    EXPECT_TRUE(status.ok()) << status;
    return ToHost<float>(sums);
  }
};

/// k distinct ids below num_experts a row, ascending or not; the lower ones more often.
std::vector<int32_t> RandomChoices(Rng& rng, int64_t num_rows, int64_t k, int64_t num_experts,
                                   bool sorted) {
  std::vector<int32_t> ids;
  for (int64_t t = 0; t < num_rows; ++t) {
    std::set<int32_t> row;
    while (std::ssize(row) < k) {
      const int64_t most = RandomInt(rng, 0, num_experts - 1);
      row.insert(static_cast<int32_t>(RandomInt(rng, 0, most)));
    }
    std::vector<int32_t> chosen(row.begin(), row.end());
    if (!sorted) std::shuffle(chosen.begin(), chosen.end(), rng);
    ids.insert(ids.end(), chosen.begin(), chosen.end());
  }
  return ids;
}

constexpr FfnTypes kTypes[] = {
    {DType::kQ4_K, DType::kQ4_K, DType::kQ6_K}, {DType::kQ8_0, DType::kQ8_0, DType::kBF16},
    {DType::kQ8_0, DType::kQ8_0, DType::kQ8_0}, {DType::kF8E4M3, DType::kF8E4M3, DType::kF8E4M3},
    {DType::kBF16, DType::kBF16, DType::kF32},  {DType::kQ2_K, DType::kQ2_K, DType::kQ3_K},
    {DType::kQ5_K, DType::kQ4_0, DType::kQ4_0}, {DType::kF8E4M3, DType::kBF16, DType::kQ8_0}};

/// A routed expert gives what the plain network of its weights gives: weights are powers of two,
/// so that a fused and a plain addition agree. Experts are chosen by none, one and many rows.
TEST_F(CudaExpertFfnTest, RoutedExpertsAreTheWeighedSumsOfPlainOnes) {
  for (const FfnTypes& types : kTypes) {
    Rng rng(5);
    const int64_t hidden = 512, inter = 256, num_experts = 9, k = 3;
    std::vector<FfnWeights> experts;
    for (int64_t e = 0; e < num_experts; ++e) experts.push_back(Random(rng, types, hidden, inter));
    const std::unique_ptr<CudaExpertFfn> ffn = Make({.max_rows = 100,
                                                     .max_chosen = k,
                                                     .hidden = hidden,
                                                     .expert_inter = inter,
                                                     .dense_inter = inter});
    for (const int64_t num_rows : {1, 2, 8, 9, 17, 100}) {
      const std::vector<float> x = RandomFloats(rng, num_rows * hidden);
      const std::vector<int32_t> ids = RandomChoices(rng, num_rows, k, num_experts, false);
      std::vector<float> weights;
      for (size_t i = 0; i < ids.size(); ++i) {
        weights.push_back(std::ldexp(1.0f, -static_cast<int>(RandomInt(rng, 0, 3))));
      }
      const std::vector<float> before = RandomFloats(rng, num_rows * hidden);
      std::vector<float> expected = before;
      for (int32_t e = 0; e < num_experts; ++e) {
        const std::vector<float> product = Dense(*ffn, experts[e], x, num_rows);
        for (int64_t i = 0; i < std::ssize(ids); ++i) {
          if (ids[i] != e) continue;
          for (int64_t c = 0; c < hidden; ++c) {
            expected[i / k * hidden + c] += weights[i] * product[i / k * hidden + c];
          }
        }
      }
      ResidentExperts resident(experts, ids);
      ASSERT_EQ(Routed(*ffn, resident, x, ids, weights, k, before), expected)
          << NameOf(types) << ", " << num_rows << " rows";
    }
  }
}

/// A plain network is what products of its matrices make, with silu from the CPU's exp: both are
/// within 2 units of the true one, which moves few values; and those not far.
TEST_F(CudaExpertFfnTest, APlainNetworkIsTheProductsOfItsMatrices) {
  for (const FfnTypes& types : kTypes) {
    Rng rng(6);
    const int64_t hidden = 768, inter = 512, num_rows = 19;
    const FfnWeights weights = Random(rng, types, hidden, inter);
    const std::unique_ptr<CudaExpertFfn> ffn =
        Make({.max_rows = num_rows, .hidden = hidden, .dense_inter = inter});
    const std::vector<float> x = RandomFloats(rng, num_rows * hidden, 0.1f);
    std::vector<float> inner = Multiply(weights.gate, x, 0, num_rows);
    const std::vector<float> ups = Multiply(weights.up, x, 0, num_rows);
    inner.pop_back();
    for (size_t i = 0; i < inner.size(); ++i) {
      inner[i] = static_cast<float>(inner[i] / (1 + std::exp(-static_cast<double>(inner[i]))) *
                                    static_cast<double>(ups[i]));
    }
    const std::vector<float> expected = Multiply(weights.down, inner, 0, num_rows);
    const std::vector<float> out = Dense(*ffn, weights, x, num_rows);
    // A changed unit of an inner value may move its code by one: at most 1 / 127 of its block's
    // largest value, which meets one weight of many. The largest of a row stands for its terms.
    for (int64_t t = 0; t < num_rows; ++t) {
      double largest = 0;
      for (int64_t c = 0; c < hidden; ++c) {
        largest = std::max<double>(largest, std::abs(expected[t * hidden + c]));
      }
      for (int64_t c = 0; c < hidden; ++c) {
        ASSERT_NEAR(out[t * hidden + c], expected[t * hidden + c], largest / 127)
            << NameOf(types) << " row " << t << " column " << c;
      }
    }
  }
}

TEST_F(CudaExpertFfnTest, BatchesOfExpertsInAnyOrderGiveTheSameBits) {
  for (const FfnTypes& types : {kTypes[0], kTypes[3]}) {
    Rng rng(7);
    const int64_t hidden = 256, inter = 256, num_experts = 12, k = 4, num_rows = 21;
    std::vector<FfnWeights> experts;
    std::vector<LoadedExpert> loaded;
    for (int32_t e = 0; e < num_experts; ++e) {
      experts.push_back(Random(rng, types, hidden, inter));
      loaded.push_back({e, experts.back()});
    }
    const std::unique_ptr<CudaExpertFfn> ffn =
        Make({.max_rows = num_rows, .max_chosen = k, .hidden = hidden, .expert_inter = inter});
    const std::vector<float> x = RandomFloats(rng, num_rows * hidden);
    const std::vector<int32_t> ids = RandomChoices(rng, num_rows, k, num_experts, true);
    const std::vector<float> weights = RandomFloats(rng, num_rows * k);
    const std::vector<float> before = RandomFloats(rng, num_rows * hidden);
    ResidentExperts resident(experts, ids);
    const std::vector<float> expected = Routed(*ffn, resident, x, ids, weights, k, before);
    EXPECT_NE(expected, before);
    for (const size_t piece : {1, 5, 12}) {
      for (const bool ascending : {true, false}) {
        PiecemealExperts pieces(loaded, piece, ascending);
        ASSERT_EQ(Routed(*ffn, pieces, x, ids, weights, k, before), expected)
            << NameOf(types) << " pieces of " << piece << (ascending ? "" : " from the last");
      }
    }
  }
}

/// More shares than products are kept for, so that down takes a few columns at a time.
TEST_F(CudaExpertFfnTest, ARowHasTheSameBitsAloneAndInAnyBatch) {
  for (const FfnTypes& types : kTypes) {
    Rng rng(8);
    const int64_t hidden = 1024, inter = 256, num_experts = 7, k = 5, num_rows = 700;
    std::vector<FfnWeights> experts;
    for (int64_t e = 0; e < num_experts; ++e) experts.push_back(Random(rng, types, hidden, inter));
    const std::unique_ptr<CudaExpertFfn> ffn =
        Make({.max_rows = num_rows, .max_chosen = k, .hidden = hidden, .expert_inter = inter});
    const std::vector<float> x = RandomFloats(rng, num_rows * hidden);
    const std::vector<int32_t> ids = RandomChoices(rng, num_rows, k, num_experts, true);
    const std::vector<float> weights = RandomFloats(rng, num_rows * k);
    const auto run = [&](int64_t first, int64_t count) {
      const std::vector<int32_t> some(ids.begin() + first * k, ids.begin() + (first + count) * k);
      ResidentExperts resident(experts, some);
      return Routed(*ffn, resident,
                    {x.begin() + first * hidden, x.begin() + (first + count) * hidden}, some,
                    {weights.begin() + first * k, weights.begin() + (first + count) * k}, k,
                    std::vector<float>(count * hidden, 0));
    };
    const std::vector<float> expected = run(0, num_rows);
    EXPECT_GT(std::set<float>(expected.begin(), expected.end()).size(), expected.size() / 8);
    for (const int64_t piece : {1, 7, 16, 40, 300}) {
      for (int64_t first = 0; first < num_rows; first += piece * (piece < 40 ? 11 : 1)) {
        const int64_t count = std::min(piece, num_rows - first);
        const std::vector<float> out = run(first, count);
        ASSERT_EQ(
            std::memcmp(out.data(), expected.data() + first * hidden, out.size() * sizeof(float)),
            0)
            << NameOf(types) << " rows from " << first << ", " << count;
      }
    }
  }
}

TEST_F(CudaExpertFfnTest, TakesNoRows) {
  Rng rng(9);
  const FfnWeights weights = Random(rng, kTypes[0], 256, 256);
  const std::unique_ptr<CudaExpertFfn> ffn = Make(
      {.max_rows = 4, .max_chosen = 2, .hidden = 256, .expert_inter = 256, .dense_inter = 256});
  ResidentExperts none(absl::MakeConstSpan(&weights, 1), {});
  EXPECT_TRUE(ffn->RunExperts(none, nullptr, 0, nullptr, nullptr, 2, nullptr).ok());
  EXPECT_TRUE(ffn->RunDense(weights, nullptr, 0, nullptr).ok());
  EXPECT_TRUE(stream().Synchronize().ok());
}

TEST_F(CudaExpertFfnTest, ExpertsOfDifferentTypesAreRefusedByName) {
  Rng rng(10);
  const std::vector<FfnWeights> experts = {Random(rng, kTypes[0], 256, 256),
                                           Random(rng, kTypes[2], 256, 256)};
  const std::unique_ptr<CudaExpertFfn> ffn =
      Make({.max_rows = 4, .max_chosen = 2, .hidden = 256, .expert_inter = 256});
  const std::vector<int32_t> ids = {0, 1};
  ResidentExperts resident(experts, ids);
  const absl::Status status = ffn->RunExperts(resident, nullptr, 1, nullptr, nullptr, 2, nullptr);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("experts 0 and 1 differ in their types"));
}

}  // namespace
}  // namespace caravan
