#include "base/io/read_rate.h"

#include <filesystem>
#include <string>

#include "base/buffer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

constexpr int64_t kFileBytes = int64_t{1} << 20;

class ReadRateTest : public ::testing::Test {
 protected:
  ReadRateTest()
      : path_(dir_.Write("file", std::string(kFileBytes, 'x'))), file_(*DirectFile::Open(path_)) {
    load_.read_bytes = 10 * kDirectAlignment;
    load_.queue.piece_bytes = 4 * kDirectAlignment;
    load_.queue.depth = 8;
    load_.duration = absl::Milliseconds(5);
    memory_ = *Buffer::Allocate(MemoryOf(load_));
  }

  absl::StatusOr<ReadRate> Measure() {
    return MeasureReadRate(*file_, load_, {memory_.data(), static_cast<size_t>(memory_.size())},
                           stop_.get_token());
  }

  TempDir dir_;
  const std::string path_;
  const std::unique_ptr<DirectFile> file_;
  ReadLoad load_;
  Buffer memory_;
  std::stop_source stop_;
};

TEST_F(ReadRateTest, NeedsMemoryForReadsThatFillTheQueueAndOneMore) {
  // 8 pieces of 4 blocks are 3.2 reads of 10.
  EXPECT_EQ(MemoryOf(load_), 5 * load_.read_bytes);
}

TEST_F(ReadRateTest, BothEnginesHaveARate) {
  for (const bool uring : {true, false}) {
    load_.queue.uring = uring;
    const auto rate = Measure();
    ASSERT_TRUE(rate.ok()) << rate.status();
    EXPECT_GT(rate->gb_per_s, 0);
    EXPECT_TRUE(uring || rate->engine == "threads");
  }
}

TEST_F(ReadRateTest, AReadThatFailsEndsIt) {
  std::filesystem::resize_file(path_, 0);
  load_.duration = absl::Hours(1);
  EXPECT_EQ(Measure().status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(ReadRateTest, StopsWhenAsked) {
  stop_.request_stop();
  load_.duration = absl::Hours(1);
  EXPECT_EQ(Measure().status().code(), absl::StatusCode::kCancelled);
}

}  // namespace
}  // namespace caravan
