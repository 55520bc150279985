#include "worker/experts/heat_keeper.h"

#include <algorithm>
#include <string>

#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/file_size_limit.h"
#include "tests/support/temp_dir.h"
#include "worker/experts/expert_heat.h"

namespace caravan {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint64_t kModel = 0xc0ffee;

constexpr ExpertCache::Shape kShape = {
    .first_layer = 3, .num_layers = 4, .experts_per_layer = 256, .num_slots = 2};

/// A cache in which `expert` of layer 3 has been used.
class UsedCache : public ExpertCache {
 public:
  explicit UsedCache(int32_t expert) : ExpertCache(kShape, *MakeCachePolicy("lfu")) {
    Use({3, expert}, {.step = 0, .rows = 1, .weight = 1});
  }
};

class HeatKeeperTest : public ::testing::Test {
 protected:
  HeatKeeper::Options Options() const {
    return {.path = path_, .model_fingerprint = kModel, .clock = &clock_};
  }
  static ExpertCache MakeCache(absl::string_view policy = "lfu") {
    return ExpertCache(kShape, *MakeCachePolicy(policy));
  }
  /// Which of the first experts of layer 3 have a score in the file; -1: there is no file.
  int UsedInFile() const {
    ExpertCache cache = MakeCache();
    if (!LoadExpertHeat(path_, kModel, cache).ok()) return -1;
    int32_t expert = 0;
    while (expert < 256 && cache.score({3, expert}) == kNoScore) ++expert;
    return expert;
  }

  const TempDir dir_;
  const std::string path_ = dir_.File("expert-heat-3-7.json");
  SimulatedClock clock_;
};

TEST_F(HeatKeeperTest, TheFileIsNamedByItsLayers) {
  EXPECT_EQ(HeatKeeper::PathOf(dir_.path(), MakeCache().shape()), path_);
}

TEST_F(HeatKeeperTest, WritesAfterAStepWhenTheIntervalHasPassed) {
  {
    HeatKeeper keeper(Options());
    clock_.Advance(absl::Minutes(5) - absl::Seconds(1));
    keeper.AfterStep(UsedCache(1), 1);
  }  // ends what is being written
  EXPECT_EQ(UsedInFile(), -1);
  {
    HeatKeeper keeper(Options());
    clock_.Advance(absl::Minutes(5));
    keeper.AfterStep(UsedCache(2), 2);
  }
  EXPECT_EQ(UsedInFile(), 2);
}

TEST_F(HeatKeeperTest, AnIntervalBeginsAnewWithEachWrite) {
  {
    HeatKeeper keeper(Options());
    clock_.Advance(absl::Minutes(5));
    keeper.AfterStep(UsedCache(1), 1);
    clock_.Advance(absl::Minutes(4));
    keeper.AfterStep(UsedCache(2), 2);
  }
  EXPECT_EQ(UsedInFile(), 1);
}

TEST_F(HeatKeeperTest, TheEndWritesWhatIsNewAndNothingElse) {
  {
    HeatKeeper keeper(Options());
    keeper.Finish(MakeCache(), -1);  // no step was run
  }
  EXPECT_EQ(UsedInFile(), -1);
  HeatKeeper keeper(Options());
  clock_.Advance(absl::Minutes(5));
  keeper.AfterStep(UsedCache(1), 1);
  keeper.Finish(UsedCache(2), 2);
  EXPECT_EQ(UsedInFile(), 2);
  keeper.Finish(UsedCache(3), 2);
  EXPECT_EQ(UsedInFile(), 2);
}

TEST_F(HeatKeeperTest, LoadsWhatWasKept) {
  ExpertCache cache = MakeCache();
  testing::internal::CaptureStderr();
  HeatKeeper(Options()).Load(cache);  // there is none
  EXPECT_THAT(testing::internal::GetCapturedStderr(), IsEmpty());
  EXPECT_EQ(cache.score({3, 5}), kNoScore);
  {
    HeatKeeper keeper(Options());
    keeper.Finish(UsedCache(5), 0);
  }
  HeatKeeper(Options()).Load(cache);
  EXPECT_NE(cache.score({3, 5}), kNoScore);
}

TEST_F(HeatKeeperTest, AFileThatIsNotItsOwnIsAWarning) {
  {
    HeatKeeper keeper(Options());
    keeper.Finish(UsedCache(5), 0);
  }
  const auto expect_warning = [&](HeatKeeper::Options options, absl::string_view policy,
                                  const std::string& says) {
    ExpertCache cache = MakeCache(policy);
    testing::internal::CaptureStderr();
    HeatKeeper(std::move(options)).Load(cache);
    EXPECT_THAT(testing::internal::GetCapturedStderr(),
                AllOf(HasSubstr("expert_heat_skipped"), HasSubstr(path_), HasSubstr(says)));
    EXPECT_EQ(cache.score({3, 5}), kNoScore);
  };
  HeatKeeper::Options other = Options();
  other.model_fingerprint = kModel + 1;
  expect_warning(other, "lfu", "is another model's");
  expect_warning(Options(), "lru", "policy");
  dir_.Write("expert-heat-3-7.json", "{");
  expect_warning(Options(), "lfu", "");
}

TEST_F(HeatKeeperTest, AFullDiskIsOneWarningAndLeavesTheFileAsItWas) {
  {
    HeatKeeper keeper(Options());
    keeper.Finish(UsedCache(1), 1);
  }
  testing::internal::CaptureStderr();
  {
    const FileSizeLimit limit(2000);
    ASSERT_GT(EncodeExpertHeat(kModel, UsedCache(2), 2).size(), 4000u);
    HeatKeeper keeper(Options());
    clock_.Advance(absl::Minutes(5));
    keeper.AfterStep(UsedCache(2), 2);
    keeper.Finish(UsedCache(3), 3);
  }
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_THAT(log, AllOf(HasSubstr("expert_heat_not_kept"), HasSubstr(path_)));
  EXPECT_EQ(std::count(log.begin(), log.end(), '\n'), 1) << log;
  EXPECT_EQ(UsedInFile(), 1);
}

}  // namespace
}  // namespace caravan
