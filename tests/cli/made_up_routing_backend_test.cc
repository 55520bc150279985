#include "cli/made_up_routing_backend.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;

/// Notes which operations it was asked for.
class NotingBackend : public Backend {
 public:
  explicit NotingBackend(std::vector<std::string>& asked) : asked_(asked) {}

  std::string Name() const override { return "noting"; }
  void Embed(const Matrix&, absl::Span<const int32_t>, float*) override { Note("Embed"); }
  void RmsNorm(const float*, int64_t, int64_t, const float*, float, float*) override {
    Note("RmsNorm");
  }
  void MatMul(const Matrix&, const float*, int64_t, float*) override { Note("MatMul"); }
  void Add(const float*, int64_t, float*) override { Note("Add"); }
  void RotateQueries(const MlaShape&, const RopeTable&, absl::Span<const SequenceRows>,
                     float*) override {
    Note("RotateQueries");
  }
  void WriteKv(const MlaShape&, const RopeTable&, const float*, float,
               absl::Span<const SequenceRows>, const KvLayout&, const float*) override {
    Note("WriteKv");
  }
  void MlaAttention(const MlaShape&, const Matrix&, absl::Span<const SequenceRows>, const KvLayout&,
                    const float*, float*) override {
    Note("MlaAttention");
  }
  void Ffn(const FfnWeights&, const float*, int64_t, float*) override { Note("Ffn"); }
  void Route(const RouterShape&, const float*, const float*, int64_t, int32_t*, float*) override {
    Note("Route");
  }
  absl::Status RoutedExperts(ExpertBatches&, const float*, int64_t, const int32_t*, const float*,
                             int64_t, float*) override {
    Note("RoutedExperts");
    return absl::DataLossError("its own");
  }
  void SummarizeLogits(const float*, int64_t, int64_t, const LogitQuestion*,
                       LogitSummary*) override {
    Note("SummarizeLogits");
  }

 private:
  void Note(const std::string& operation) { asked_.push_back(operation); }

  std::vector<std::string>& asked_;
};

/// Three layers of 16 experts, 4 a token, two sequences.
SyntheticRouting::Options Routing() {
  SyntheticRouting::Options routing;
  routing.num_layers = 3;
  routing.n_routed_experts = 16;
  routing.num_experts_per_tok = 4;
  routing.num_sequences = 2;
  routing.seed = 7;
  return routing;
}

TEST(MadeUpRoutingBackendTest, ItsChoicesAreSyntheticRoutingsForTheStagesLayersInTurn) {
  std::vector<std::string> asked;
  // The second and the third layer's.
  MadeUpRoutingBackend backend(std::make_unique<NotingBackend>(asked), Routing(), 1, 2);
  SyntheticRouting expected(Routing());
  RouterShape shape;
  shape.n_routed_experts = 16;
  shape.num_experts_per_tok = 4;
  for (const auto& [layer, rows] : {std::pair{1, 2}, {2, 2}, {1, 1}, {2, 1}, {1, 5}, {2, 5}}) {
    std::vector<int32_t> expert_ids(static_cast<size_t>(4 * rows));
    std::vector<float> weights(expert_ids.size());
    backend.Route(shape, nullptr, nullptr, rows, expert_ids.data(), weights.data());
    for (int row = 0; row < rows; ++row) {
      const SyntheticRouting::Row chosen = expected.Next(layer);
      EXPECT_THAT(absl::MakeConstSpan(expert_ids).subspan(static_cast<size_t>(4 * row), 4),
                  ElementsAreArray(chosen.expert_ids));
      EXPECT_THAT(absl::MakeConstSpan(weights).subspan(static_cast<size_t>(4 * row), 4),
                  ElementsAreArray(chosen.weights));
    }
  }
  EXPECT_THAT(asked, ElementsAre());
}

TEST(MadeUpRoutingBackendTest, EverythingElseIsTheOtherBackends) {
  std::vector<std::string> asked;
  MadeUpRoutingBackend backend(std::make_unique<NotingBackend>(asked), Routing(), 0, 3);
  EXPECT_EQ(backend.Name(), "noting, made-up routing");
  backend.Embed({}, {}, nullptr);
  backend.RmsNorm(nullptr, 0, 0, nullptr, 0, nullptr);
  backend.MatMul({}, nullptr, 0, nullptr);
  backend.Add(nullptr, 0, nullptr);
  backend.RotateQueries({}, {}, {}, nullptr);
  backend.WriteKv({}, {}, nullptr, 0, {}, {}, nullptr);
  backend.MlaAttention({}, {}, {}, {}, nullptr, nullptr);
  backend.Ffn({}, nullptr, 0, nullptr);
  ResidentExperts none({}, {});
  EXPECT_EQ(backend.RoutedExperts(none, nullptr, 0, nullptr, nullptr, 0, nullptr),
            absl::DataLossError("its own"));
  backend.SummarizeLogits(nullptr, 0, 1, nullptr, nullptr);
  EXPECT_THAT(asked, ElementsAre("Embed", "RmsNorm", "MatMul", "Add", "RotateQueries", "WriteKv",
                                 "MlaAttention", "Ffn", "RoutedExperts", "SummarizeLogits"));
}

}  // namespace
}  // namespace caravan
