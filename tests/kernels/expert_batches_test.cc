// Routed experts that come in pieces and in any order give the bits of experts that are all there.

#include "kernels/expert_batches.h"

#include <numeric>

#include "gmock/gmock.h"
#include "tests/kernels/kernel_testing.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr int64_t kNumExperts = 9;
constexpr int64_t kChosen = 3;
constexpr int64_t kHidden = 256;
constexpr int64_t kInter = 256;

/// Gives `ids` in that order, in batches of random sizes; each batch's weights are gone with it.
class Pieces : public ExpertBatches {
 public:
  Pieces(absl::Span<const FfnWeights> experts, std::vector<int32_t> ids, bool ascending, Rng& rng)
      : experts_(experts), ids_(std::move(ids)), ascending_(ascending), rng_(rng) {}

  absl::StatusOr<absl::Span<const LoadedExpert>> Next() override {
    batch_.assign(batch_.size(), LoadedExpert{-1, {}});
    batch_.clear();
    batch_.shrink_to_fit();
    if (given_ == ids_.size() && fails_) return absl::DataLossError("expert 7");
    const int64_t left = static_cast<int64_t>(ids_.size() - given_);
    for (int64_t i = left == 0 ? 0 : RandomInt(rng_, 1, left); i > 0; --i) {
      const int32_t id = ids_[given_++];
      batch_.push_back({id, experts_[static_cast<size_t>(id)]});
    }
    return absl::MakeConstSpan(batch_);
  }
  bool ascending() const override { return ascending_; }

  /// In place of the end.
  void Fail() { fails_ = true; }

 private:
  const absl::Span<const FfnWeights> experts_;
  const std::vector<int32_t> ids_;
  const bool ascending_;
  Rng& rng_;
  size_t given_ = 0;
  bool fails_ = false;
  std::vector<LoadedExpert> batch_;
};

/// Experts with their memory.
struct Layer {
  Layer(Rng& rng, DType in, DType out, bool tiled) : tiles(3 * kNumExperts) {
    matrices.reserve(3 * kNumExperts);
    const auto add = [&](DType dtype, int64_t rows, int64_t cols) {
      matrices.push_back(BlockOf(dtype).values > 1
                             ? TestMatrix::RandomBlocks(rng, dtype, rows, cols)
                             : TestMatrix::Random(rng, dtype, rows, cols));
      return tiled ? matrices.back().Tiled(tiles[matrices.size() - 1]) : matrices.back().view();
    };
    for (int64_t e = 0; e < kNumExperts; ++e) {
      const Matrix gate = add(in, kInter, kHidden);
      const Matrix up = add(in, kInter, kHidden);
      experts.push_back({gate, up, add(out, kHidden, kInter)});
    }
  }

  std::vector<TestMatrix> matrices;
  std::vector<std::vector<std::byte>> tiles;
  std::vector<FfnWeights> experts;
};

/// The rows of a call.
struct Rows {
  Rows(Rng& rng, int64_t num_rows)
      : count(num_rows),
        x(RandomFloats(rng, num_rows * kHidden)),
        before(RandomFloats(rng, num_rows * kHidden)),
        weights(RandomFloats(rng, num_rows * kChosen)) {
    std::vector<int32_t> all(kNumExperts);
    std::iota(all.begin(), all.end(), 0);
    for (int64_t t = 0; t < num_rows; ++t) {
      std::shuffle(all.begin(), all.end() - 1, rng);  // the last expert is not chosen
      std::sort(all.begin(), all.begin() + kChosen);
      ids.insert(ids.end(), all.begin(), all.begin() + kChosen);
    }
    chosen = ids;
    std::sort(chosen.begin(), chosen.end());
    chosen.erase(std::unique(chosen.begin(), chosen.end()), chosen.end());
  }

  absl::Status Run(Backend& backend, ExpertBatches& experts, std::vector<float>& out) const {
    out = before;
    return backend.RoutedExperts(experts, x.data(), count, ids.data(), weights.data(), kChosen,
                                 out.data());
  }

  int64_t count;
  std::vector<float> x;
  std::vector<float> before;
  std::vector<float> weights;
  std::vector<int32_t> ids;
  std::vector<int32_t> chosen;  // each once, ascending
};

void ExpectSameBitsInAnyPieces(const Layer& layer, const Rows& rows, Backend& backend, Rng& rng,
                               int turns) {
  ResidentExperts resident(layer.experts, rows.ids);
  std::vector<float> expected;
  ASSERT_TRUE(rows.Run(backend, resident, expected).ok());
  for (int turn = 0; turn < turns; ++turn) {
    const bool ascending = turn % 2 == 0;
    std::vector<int32_t> ids = rows.chosen;
    if (!ascending) std::shuffle(ids.begin(), ids.end(), rng);
    Pieces pieces(layer.experts, std::move(ids), ascending, rng);
    std::vector<float> out;
    ASSERT_TRUE(rows.Run(backend, pieces, out).ok());
    ASSERT_EQ(std::memcmp(out.data(), expected.data(), out.size() * sizeof(float)), 0)
        << backend.Name() << ", " << rows.count << " rows, "
        << (ascending ? "ascending" : "any order");
  }
}

TEST(ExpertBatchesTest, GiveTheSameBitsInAnyPieces) {
  struct Types {
    DType in, out;
  };
  std::vector<Types> types;
  for (const DType dtype : kBlockTypes) types.push_back({dtype, dtype});
  for (const DType dtype : kWeightTypes) types.push_back({dtype, dtype});
  types.push_back({DType::kQ4_K, DType::kBF16});
  types.push_back({DType::kF8E4M3, DType::kQ6_K});
  for (const auto& [in, out] : types) {
    for (const bool tiled : {true, false}) {
      Rng rng(1);
      const Layer layer(rng, in, out, tiled);
      for (const int64_t num_rows : {1, 2, 37}) {
        const Rows rows(rng, num_rows);
        for (const CpuIsa isa : TestedIsas()) {
          for (const int num_threads : {1, 3}) {
            ASSERT_NO_FATAL_FAILURE(ExpectSameBitsInAnyPieces(
                layer, rows, *CpuBackendFor(isa, num_threads), rng, tiled ? 6 : 2))
                << DTypeName(in) << " " << DTypeName(out) << (tiled ? " tiled" : "");
          }
        }
      }
    }
  }
}

TEST(ExpertBatchesTest, GiveTheSameBitsPastWhatRunsTogether) {
  for (const DType dtype : {DType::kQ4_K, DType::kBF16}) {
    Rng rng(2);
    const Layer layer(rng, dtype, dtype, true);
    const Rows rows(rng, 2100);  // an expert has more than kFfnTileRows, all more than a run
    for (const int num_threads : {1, 2}) {
      ASSERT_NO_FATAL_FAILURE(ExpectSameBitsInAnyPieces(
          layer, rows, *CpuBackendFor(CpuIsa::kAuto, num_threads), rng, 4));
    }
  }
}

TEST(ExpertBatchesTest, GiveTheReferenceTheSameBitsInAnyPieces) {
  Rng rng(3);
  const Layer layer(rng, DType::kQ8_0, DType::kQ8_0, false);
  const std::unique_ptr<Backend> reference = MakeReferenceBackend();
  ASSERT_NO_FATAL_FAILURE(ExpectSameBitsInAnyPieces(layer, Rows(rng, 3), *reference, rng, 4));
}

TEST(ExpertBatchesTest, AnErrorEndsTheCallAndNotTheNext) {
  Rng rng(4);
  const Layer layer(rng, DType::kQ8_0, DType::kQ8_0, true);
  const Rows rows(rng, 20);
  for (const NamedBackend& tested : AllBackends()) {
    for (const bool ascending : {true, false}) {
      std::vector<int32_t> some(rows.chosen.begin(), rows.chosen.end() - 2);
      Pieces pieces(layer.experts, std::move(some), ascending, rng);
      pieces.Fail();
      std::vector<float> out;
      const absl::Status status = rows.Run(*tested.backend, pieces, out);
      EXPECT_EQ(status, absl::DataLossError("expert 7")) << tested.name;
      ASSERT_NO_FATAL_FAILURE(ExpectSameBitsInAnyPieces(layer, rows, *tested.backend, rng, 2));
    }
  }
}

TEST(ResidentExpertsTest, GiveWhatWasChosenOnce) {
  const std::vector<FfnWeights> experts(6);
  ResidentExperts resident(experts, {4, 1, 1, 4, 5});
  std::vector<int32_t> ids;
  const auto first = resident.Next();
  ASSERT_TRUE(first.ok());
  for (const LoadedExpert& expert : *first) ids.push_back(expert.id);
  EXPECT_THAT(ids, ElementsAre(1, 4, 5));
  const auto second = resident.Next();
  ASSERT_TRUE(second.ok());
  EXPECT_THAT(*second, IsEmpty());
}

}  // namespace
}  // namespace caravan
