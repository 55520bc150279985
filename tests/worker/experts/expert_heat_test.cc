#include "worker/experts/expert_heat.h"

#include <filesystem>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kModel = 0xc0ffee;
constexpr ExpertCache::Shape kShape = {
    .first_layer = 3, .num_layers = 2, .experts_per_layer = 4, .num_slots = 2};

ExpertCache MakeCache(absl::string_view policy, const ExpertCache::Shape& shape = kShape) {
  return ExpertCache(shape, *MakeCachePolicy(policy));
}

void ExpectCold(const ExpertCache& cache) {
  for (int expert = 0; expert < 4; ++expert) {
    EXPECT_EQ(cache.score({3, expert}), kNoScore);
    EXPECT_EQ(cache.score({4, expert}), kNoScore);
  }
}

TEST(ExpertHeatTest, GoesOnAsIfStepsHadNotBegunAnew) {
  const TempDir dir;
  const std::string path = dir.File("heat");
  for (const absl::string_view policy : kCachePolicyNames) {
    SCOPED_TRACE(policy);
    ExpertCache before = MakeCache(policy);
    before.Use({3, 0}, {.step = 5000, .rows = 2, .weight = 1});
    before.Use({3, 1}, {.step = 5000, .rows = 1, .weight = 0.5f});
    before.Use({4, 3}, {.step = 5039, .rows = 1, .weight = 0.25f});
    ASSERT_TRUE(WriteExpertHeat(path, EncodeExpertHeat(kModel, before, 5040)).ok());

    ExpertCache after = MakeCache(policy);
    const absl::Status loaded = LoadExpertHeat(path, kModel, after);
    ASSERT_TRUE(loaded.ok()) << loaded;
    EXPECT_EQ(after.score({3, 2}), kNoScore);
    // The same uses from here on, 5040 steps apart.
    for (const ExpertKey key : {ExpertKey{3, 1}, ExpertKey{4, 0}}) {
      before.Use(key, {.step = 5050, .rows = 1, .weight = 0.5f});
      after.Use(key, {.step = 10, .rows = 1, .weight = 0.5f});
    }
    const double apart = before.score({4, 0}) - after.score({4, 0});
    for (const ExpertKey key : {ExpertKey{3, 0}, ExpertKey{3, 1}, ExpertKey{4, 3}}) {
      EXPECT_NEAR(before.score(key) - after.score(key), apart, 1e-9);
    }
  }
}

TEST(ExpertHeatTest, LayersThatBothHaveAreLoaded) {
  const TempDir dir;
  const std::string path = dir.File("heat");
  ExpertCache before = MakeCache("lfu");
  before.Use({3, 0}, {.step = 0, .rows = 1, .weight = 1});
  before.Use({4, 1}, {.step = 0, .rows = 2, .weight = 1});
  ASSERT_TRUE(WriteExpertHeat(path, EncodeExpertHeat(kModel, before, 0)).ok());
  ExpertCache after = MakeCache("lfu", {4, 5, 4, 2});
  ASSERT_TRUE(LoadExpertHeat(path, kModel, after).ok());
  EXPECT_EQ(after.score({4, 1}), 1);
  EXPECT_EQ(after.score({4, 0}), kNoScore);
  EXPECT_EQ(after.score({5, 0}), kNoScore);
}

TEST(ExpertHeatTest, RefusesWhatIsNotItsOwn) {
  const TempDir dir;
  const std::string path = dir.File("heat");
  ExpertCache cache = MakeCache("lfu");
  EXPECT_EQ(LoadExpertHeat(path, kModel, cache).code(), absl::StatusCode::kNotFound);

  ExpertCache used = MakeCache("lfu");
  used.Use({3, 0}, {.step = 0, .rows = 1, .weight = 1});
  used.Use({4, 3}, {.step = 0, .rows = 1, .weight = 1});
  ASSERT_TRUE(WriteExpertHeat(path, EncodeExpertHeat(kModel, used, 0)).ok());
  const auto expect_refused = [&](const std::string& file, ExpertCache& into, uint64_t model,
                                  const std::string& says) {
    const absl::Status status = LoadExpertHeat(file, model, into);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(status.message(), HasSubstr(file));
    EXPECT_THAT(status.message(), HasSubstr(says));
    ExpectCold(into);
  };
  expect_refused(path, cache, kModel + 1, "another model's");
  ExpertCache lru = MakeCache("lru");
  expect_refused(path, lru, kModel, "\"lfu\", not \"lru\"");

  const std::string text = *ReadFile(path, 1 << 20);
  const auto expect_changed_refused = [&](const std::string& from, const std::string& to,
                                          const std::string& says) {
    SCOPED_TRACE(to);
    const std::string changed = absl::StrReplaceAll(text, {{from, to}});
    ASSERT_NE(changed, text);
    expect_refused(dir.Write("changed", changed), cache, kModel, says);
  };
  expect_changed_refused("caravan expert heat", "caravan pack", "format");
  expect_changed_refused("\"version\":1", "\"version\":2", "version");
  expect_changed_refused("[[0.0,", "[[\"hot\",", "entry 0, expert 0 is no score");
  expect_changed_refused("[[0.0,", "[[1e300,", "entry 0, expert 0 is no score");
  expect_changed_refused("[[0.0,", "[[", "entry 0 is no list of 4 scores");
  for (size_t size = 0; size + 2 < text.size(); ++size) {
    expect_refused(dir.Write("cut", absl::string_view(text).substr(0, size)), cache, kModel, "");
  }
}

TEST(ExpertHeatTest, ReplacesTheFileAsAWhole) {
  const TempDir dir;
  const std::string path = dir.Write("heat", "what was there before");
  ASSERT_TRUE(WriteExpertHeat(path, EncodeExpertHeat(kModel, MakeCache("lru"), 7)).ok());
  ExpertCache cache = MakeCache("lru");
  EXPECT_TRUE(LoadExpertHeat(path, kModel, cache).ok());
  for (const auto& entry : std::filesystem::directory_iterator(dir.path())) {
    EXPECT_EQ(entry.path(), path);
  }
  EXPECT_EQ(WriteExpertHeat(dir.File("none/heat"), EncodeExpertHeat(kModel, cache, 7)).code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace caravan
