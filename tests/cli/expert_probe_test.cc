#include "cli/expert_probe.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/support/fake_card.h"
#include "tests/support/golden.h"
#include "tests/worker/experts/expert_testing.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

/// A card for which the CPU stands in.
class FakeDevice : public ComputeDevice {
 public:
  std::string Name() const override { return "fake:0 (test)"; }
  int64_t memory_budget_bytes() const override { return int64_t{1} << 30; }
  absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(const ModelConfig&, int64_t) const override {
    return std::make_unique<FakeCard>(*MakeCpuBackend({}));
  }
  absl::StatusOr<std::unique_ptr<Backend>> MakeCpu() const override { return MakeCpuBackend({}); }
};

TEST(ExpertProbeTest, MeasuresTheModelsExperts) {
  const PackedToy toy;
  const absl::StatusOr<ExpertProbe> probe = ProbeExperts(toy.model(), FakeDevice(), 16);
  ASSERT_TRUE(probe.ok()) << probe.status();
  EXPECT_EQ(probe->expert_bytes, toy.run_bytes());
  // 1, 2, 4, 8: of 16 rows on average some experts have more.
  ASSERT_EQ(probe->costs.points.size(), 4u);
  EXPECT_EQ(probe->costs.points[3].rows, 8);
  EXPECT_GT(probe->costs.copy_seconds, 0);
}

TEST(ExpertProbeTest, RefusesACpuAndAModelThatIsNotPacked) {
  const PackedToy toy;
  const auto cpu = *OpenComputeDevice({});
  EXPECT_THAT(ProbeExperts(toy.model(), *cpu, 16).status().message(),
              HasSubstr("--device: experts are shared with a card"));
  const auto checkpoint = MustOpenCheckpoint(kTinyR1.directory);
  EXPECT_EQ(ProbeExperts(*checkpoint, FakeDevice(), 16).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(ExpertProbeTest, ShowsATable) {
  ExpertProbe probe;
  probe.device = "cuda:0 (Card)";
  probe.expert_bytes = 25 << 20;
  probe.costs.points = {{.rows = 1,
                         .cpu_seconds = 0.0002,
                         .cpu_beside_seconds = 0.00025,
                         .copy_beside_seconds = 0.0006,
                         .card_seconds = 0.00002},
                        {.rows = 4,
                         .cpu_seconds = 0.001,
                         .cpu_beside_seconds = 0.0011,
                         .copy_beside_seconds = 0.00055,
                         .card_seconds = 0.00004}};
  probe.costs.copy_seconds = 0.0005;
  probe.costs.visit_seconds = 0.0001;
  probe.costs.visit_row_seconds = 0.000002;
  EXPECT_EQ(
      ExpertProbeTable(probe),
      "an expert of 25.0 MiB, one of as many as a token chooses, in ms; cuda:0 (Card)\n"
      "its copy to the card takes 0.500; a visit of n rows takes 0.100 + 0.00200 n beside its "
      "experts\n\n"
      "    rows  on the CPU with copies a copy's then on the card\n"
      "       1       0.200       0.250         0.600       0.020\n"
      "       4       1.000       1.100         0.550       0.040\n");
  const nlohmann::json json = ExpertProbeJson(probe);
  EXPECT_EQ(json["copy_s"], 0.0005);
  EXPECT_EQ(json["points"][1]["rows"], 4);
  EXPECT_EQ(json["points"][1]["card_s"], 0.00004);
  EXPECT_EQ(json["device"], "cuda:0 (Card)");
}

}  // namespace
}  // namespace caravan
