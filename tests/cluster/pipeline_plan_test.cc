#include "cluster/pipeline_plan.h"

#include <cstdint>
#include <limits>

#include "gtest/gtest.h"

namespace caravan {
namespace {

TEST(PipelinePlanTest, CarriesAStageOverTheWire) {
  for (const StageSpec& stage :
       {StageSpec{0, 6, true, true}, StageSpec{2, 3, false, false}, StageSpec{3, 61, false, true},
        StageSpec{3, 61, false, true, true}}) {
    const absl::StatusOr<StageSpec> back = StageFromProto(ToProto(stage));
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_EQ(*back, stage);
  }
}

TEST(PipelinePlanTest, RefusesAStageThatCannotBe) {
  struct Range {
    uint32_t first, end;
  };
  for (const Range& range :
       {Range{0, 0}, Range{3, 3}, Range{4, 3}, Range{0, std::numeric_limits<uint32_t>::max()},
        Range{0x80000000u, 0x80000001u}}) {
    v1::Stage stage;
    stage.set_first_layer(range.first);
    stage.set_end_layer(range.end);
    EXPECT_EQ(StageFromProto(stage).status().code(), absl::StatusCode::kInvalidArgument)
        << range.first << ".." << range.end;
  }
}

}  // namespace
}  // namespace caravan
