#include "worker/experts/expert_cost_file.h"

#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

constexpr char kBox[] = "card; cpu; experts";

ExpertCosts SomeCosts() {
  ExpertCosts costs;
  costs.points = {{.rows = 1,
                   .cpu_seconds = 0.0002,
                   .cpu_beside_seconds = 0.00025,
                   .copy_beside_seconds = 0.0006,
                   .card_seconds = 0.1},
                  {.rows = 4,
                   .cpu_seconds = 0.001,
                   .cpu_beside_seconds = 0.0011,
                   .copy_beside_seconds = 0.00055,
                   .card_seconds = 0.2}};
  costs.copy_seconds = 0.0005;
  costs.visit_seconds = 0.0001;
  costs.visit_row_seconds = 1.0 / 3;
  return costs;
}

class ExpertCostFileTest : public ::testing::Test {
 protected:
  absl::StatusOr<ExpertCosts> Kept(absl::string_view measured_for = kBox) {
    return KeptExpertCosts(path_, measured_for, [this]() -> absl::StatusOr<ExpertCosts> {
      ++measured_;
      return SomeCosts();
    });
  }
  void WriteText(const std::string& text) { std::ofstream(path_) << text; }
  std::string Text() { return *ReadFile(path_, 1 << 20); }
  /// The file with one part of its text replaced.
  void Spoil(const std::string& part, const std::string& by) {
    ASSERT_TRUE(WriteExpertCosts(path_, kBox, SomeCosts()).ok());
    std::string text = Text();
    const size_t at = text.find(part);
    ASSERT_NE(at, std::string::npos) << text;
    WriteText(text.replace(at, part.size(), by));
  }

  const TempDir dir_;
  std::string path_ = dir_.File("expert-costs-9dab8822ae4b8d84.json");
  int measured_ = 0;
};

TEST_F(ExpertCostFileTest, IsNamedByWhatItIsMeasuredFor) {
  EXPECT_EQ(ExpertCostPath(dir_.path(), kBox), path_);
  EXPECT_NE(ExpertCostPath(dir_.path(), "another card; cpu; experts"), path_);
}

TEST_F(ExpertCostFileTest, HasWhatWasMeasured) {
  ASSERT_TRUE(WriteExpertCosts(path_, kBox, SomeCosts()).ok());
  const absl::StatusOr<ExpertCosts> costs = LoadExpertCosts(path_, kBox);
  ASSERT_TRUE(costs.ok()) << costs.status();
  EXPECT_EQ(ExpertCostsJson(*costs), ExpertCostsJson(SomeCosts()));
  EXPECT_EQ(costs->visit_row_seconds, 1.0 / 3);
}

TEST_F(ExpertCostFileTest, IsMeasuredOnce) {
  for (int start = 0; start < 3; ++start) {
    const absl::StatusOr<ExpertCosts> costs = Kept();
    ASSERT_TRUE(costs.ok()) << costs.status();
    EXPECT_EQ(ExpertCostsJson(*costs), ExpertCostsJson(SomeCosts()));
  }
  EXPECT_EQ(measured_, 1);
}

TEST_F(ExpertCostFileTest, AnotherBoxIsMeasuredAnew) {
  ASSERT_TRUE(Kept().ok());
  ASSERT_TRUE(Kept("another card; cpu; experts").ok());
  EXPECT_EQ(measured_, 2);
  EXPECT_TRUE(LoadExpertCosts(path_, "another card; cpu; experts").ok());
  const absl::Status other = LoadExpertCosts(path_, kBox).status();
  EXPECT_EQ(other.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(other.message(), HasSubstr("another card"));
  EXPECT_THAT(other.message(), HasSubstr(path_));
}

TEST_F(ExpertCostFileTest, WhatIsDamagedIsMeasuredAnew) {
  int times = 0;
  for (const auto& [part, by] :
       {std::pair{"caravan expert costs", "caravan expert heat"},
        std::pair{"\"version\":1", "\"version\":2"},
        std::pair{"\"visit_s\":0.0001", "\"visit_s\":-1"}, std::pair{"\"copy_s\"", "\"copies\""},
        std::pair{"\"rows\":4", "\"rows\":1"}, std::pair{"\"rows\":1", "\"rows\":0"},
        std::pair{"\"points\":[", "\"points\":7,\"x\":["}, std::pair{"}", ""}}) {
    SCOPED_TRACE(by);
    Spoil(part, by);
    EXPECT_EQ(LoadExpertCosts(path_, kBox).status().code(), absl::StatusCode::kInvalidArgument);
    ASSERT_TRUE(Kept().ok());
    EXPECT_EQ(measured_, ++times);
    EXPECT_TRUE(LoadExpertCosts(path_, kBox).ok());
  }
}

TEST_F(ExpertCostFileTest, WithoutAPlaceNothingIsKept) {
  path_ = "";
  ASSERT_TRUE(Kept().ok());
  ASSERT_TRUE(Kept().ok());
  EXPECT_EQ(measured_, 2);
  path_ = dir_.File("no/such/directory.json");
  EXPECT_TRUE(Kept().ok());
}

TEST_F(ExpertCostFileTest, WhatCannotBeMeasuredIsAnError) {
  const absl::StatusOr<ExpertCosts> costs =
      KeptExpertCosts(path_, kBox, []() -> absl::StatusOr<ExpertCosts> {
        return absl::DataLossError("expert 3 cannot be read");
      });
  EXPECT_EQ(costs.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_FALSE(FileExists(path_));
}

}  // namespace
}  // namespace caravan
