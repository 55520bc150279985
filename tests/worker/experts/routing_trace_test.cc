#include "worker/experts/routing_trace.h"

#include <xxhash.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/file_size_limit.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

constexpr RoutingTraceHeader kHeader = {.model_fingerprint = 0x0123456789abcdef,
                                        .first_layer = 3,
                                        .num_layers = 2,
                                        .n_routed_experts = 300,
                                        .num_experts_per_tok = 2};
constexpr int64_t kHeaderBytes = 44;

struct Routing {
  int layer = 0;
  int64_t num_rows = 0;
  std::vector<int32_t> expert_ids;
  std::vector<float> weights;
  friend bool operator==(const Routing&, const Routing&) = default;
};

class Collector : public RoutingObserver {
 public:
  void OnRouting(int layer, int64_t num_rows, absl::Span<const int32_t> expert_ids,
                 absl::Span<const float> weights) override {
    seen.push_back({layer,
                    num_rows,
                    {expert_ids.begin(), expert_ids.end()},
                    {weights.begin(), weights.end()}});
  }
  std::vector<Routing> seen;
};

// Weights that a binary16 holds.
const std::vector<Routing>& Samples() {
  static const auto& samples = *new std::vector<Routing>{
      {3, 1, {0, 299}, {0.75f, 0.25f}},
      {4, 1, {256, 255}, {1.5f, 0.0f}},
      {3, 3, {1, 2, 3, 4, 5, 6}, {0.5f, 0.5f, 2, 4, 0.125f, 0.25f}},
  };
  return samples;
}

std::unique_ptr<RoutingTraceWriter> OpenWriter(const std::string& path,
                                               const RoutingTraceHeader& header = kHeader) {
  absl::StatusOr<std::unique_ptr<RoutingTraceWriter>> writer =
      RoutingTraceWriter::Open(path, header);
  EXPECT_TRUE(writer.ok()) << writer.status();
  return *std::move(writer);
}

void Record(const std::string& path, const std::vector<Routing>& routings) {
  const auto writer = OpenWriter(path);
  for (const Routing& each : routings) {
    writer->OnRouting(each.layer, each.num_rows, each.expert_ids, each.weights);
  }
}

/// What a file's reader says and shows.
struct Reading {
  absl::Status status;
  int64_t torn_bytes = 0;
  RoutingTraceHeader header;
  std::vector<Routing> seen;
};

Reading ReadTrace(const std::string& path) {
  Reading reading;
  const auto reader = RoutingTraceReader::Open(path);
  if (!reader.ok()) return {reader.status(), 0, {}, {}};
  Collector collector;
  const absl::StatusOr<int64_t> torn = (*reader)->Read(collector);
  return {torn.status(), torn.ok() ? *torn : 0, (*reader)->header(), collector.seen};
}

TEST(RoutingTraceTest, ComesBackAsItWas) {
  const TempDir dir;
  const std::string path = dir.File("trace");
  Record(path, Samples());
  const Reading reading = ReadTrace(path);
  EXPECT_TRUE(reading.status.ok()) << reading.status;
  EXPECT_EQ(reading.torn_bytes, 0);
  EXPECT_EQ(reading.header, kHeader);
  EXPECT_EQ(reading.seen, Samples());
}

TEST(RoutingTraceTest, TakesTheBytesThatTheDocumentSays) {
  const TempDir dir;
  const std::string path = dir.File("trace");
  Record(path, {});
  EXPECT_EQ(std::filesystem::file_size(path), kHeaderBytes);
  Record(path, Samples());
  EXPECT_EQ(std::filesystem::file_size(path), kHeaderBytes + 12 + 3 * 6 + 5 * 2 * (2 + 2));
  const std::string narrow = dir.File("narrow");
  RoutingTraceHeader header = kHeader;
  header.n_routed_experts = 256;
  OpenWriter(narrow, header)->OnRouting(3, 1, {0, 255}, {1, 1});
  EXPECT_EQ(std::filesystem::file_size(narrow), kHeaderBytes + 12 + 6 + 2 * (1 + 2));
  EXPECT_EQ(ReadTrace(narrow).seen, (std::vector<Routing>{{3, 1, {0, 255}, {1, 1}}}));
}

TEST(RoutingTraceTest, GoesOnWithAFileOfTheSameStage) {
  const TempDir dir;
  const std::string path = dir.File("trace");
  Record(path, Samples());
  Record(path, Samples());
  std::vector<Routing> twice = Samples();
  twice.insert(twice.end(), Samples().begin(), Samples().end());
  EXPECT_EQ(ReadTrace(path).seen, twice);

  RoutingTraceHeader other = kHeader;
  ++other.model_fingerprint;
  const absl::Status status = RoutingTraceWriter::Open(path, other).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr(absl::StrCat(path, ": is a routing trace of another")));
  EXPECT_EQ(ReadTrace(path).seen, twice);
}

TEST(RoutingTraceTest, RefusesASecondWriter) {
  const TempDir dir;
  const std::string path = dir.File("trace");
  const auto first = OpenWriter(path);
  EXPECT_THAT(RoutingTraceWriter::Open(path, kHeader).status().message(),
              HasSubstr("another process records into it"));
}

TEST(RoutingTraceTest, ManyBlocksAndWideStepsComeBack) {
  const TempDir dir;
  const std::string path = dir.File("trace");
  std::vector<Routing> routings;
  for (int i = 0; i < 3000; ++i) {
    // Some entries are larger than what is written at once.
    const int64_t rows = i % 1000 == 999 ? 20000 : 1 + i % 7;
    Routing& routing = routings.emplace_back(Routing{3 + i % 2, rows, {}, {}});
    for (int64_t row = 0; row < rows; ++row) {
      routing.expert_ids.insert(routing.expert_ids.end(),
                                {static_cast<int32_t>(row % 300), static_cast<int32_t>(i % 300)});
      routing.weights.insert(routing.weights.end(), {0.5f, 0.25f});
    }
  }
  Record(path, routings);
  const Reading reading = ReadTrace(path);
  EXPECT_TRUE(reading.status.ok()) << reading.status;
  EXPECT_EQ(reading.seen, routings);
}

TEST(RoutingTraceTest, WeightsAreRoundedAndNeverInfinite) {
  const TempDir dir;
  const std::string path = dir.File("trace");
  Record(path, {{3, 1, {1, 2}, {0.1f, 1e30f}},
                {4, 1, {1, 2}, {std::numeric_limits<float>::quiet_NaN(), -1e30f}}});
  const Reading reading = ReadTrace(path);
  ASSERT_EQ(reading.seen.size(), 2u) << reading.status;
  EXPECT_NEAR(reading.seen[0].weights[0], 0.1f, 0.1f / 2048);
  EXPECT_EQ(reading.seen[0].weights[1], 65504);
  EXPECT_EQ(reading.seen[1].weights, (std::vector<float>{0, -65504}));
}

TEST(RoutingTraceTest, CutAnywhereTheWholeBlocksAreThere) {
  const TempDir dir;
  const std::string path = dir.File("trace");
  Record(path, {Samples()[0]});
  const int64_t first_end = static_cast<int64_t>(std::filesystem::file_size(path));
  Record(path, {Samples()[1], Samples()[2]});
  const std::string whole = *ReadFile(path, 1 << 20);
  for (int64_t size = 0; size < static_cast<int64_t>(whole.size()); ++size) {
    SCOPED_TRACE(size);
    const std::string cut =
        dir.Write("cut", absl::string_view(whole).substr(0, static_cast<size_t>(size)));
    const Reading reading = ReadTrace(cut);
    if (size < kHeaderBytes) {
      EXPECT_EQ(reading.status.code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(reading.status.message(), HasSubstr(cut));
      if (size > 0) {
        EXPECT_FALSE(RoutingTraceWriter::Open(cut, kHeader).ok());
      }
      continue;
    }
    const int64_t kept = size < first_end ? kHeaderBytes : first_end;
    std::vector<Routing> expected;
    if (size >= first_end) expected.push_back(Samples()[0]);
    EXPECT_TRUE(reading.status.ok()) << reading.status;
    EXPECT_EQ(reading.torn_bytes, size - kept);
    EXPECT_EQ(reading.seen, expected);
    // A writer that goes on cuts the torn block off, and says so.
    testing::internal::CaptureStderr();
    Record(cut, {Samples()[2]});
    const std::string log = testing::internal::GetCapturedStderr();
    EXPECT_EQ(absl::StrContains(log, "routing_trace_torn"), size > kept) << log;
    expected.push_back(Samples()[2]);
    EXPECT_EQ(ReadTrace(cut).torn_bytes, 0);
    EXPECT_EQ(ReadTrace(cut).seen, expected);
  }
}

TEST(RoutingTraceTest, NoChangedByteGoesUnnoticed) {
  const TempDir dir;
  const std::string path = dir.File("trace");
  Record(path, {Samples()[0]});
  Record(path, {Samples()[1], Samples()[2]});
  const std::string whole = *ReadFile(path, 1 << 20);
  for (size_t at = 0; at < whole.size(); ++at) {
    for (const int flipped : {1, 0x80}) {
      SCOPED_TRACE(testing::Message() << at << " ^ " << flipped);
      std::string bytes = whole;
      bytes[at] = static_cast<char>(bytes[at] ^ flipped);
      const std::string changed = dir.Write("changed", bytes);
      const Reading reading = ReadTrace(changed);
      EXPECT_TRUE(!reading.status.ok() || reading.torn_bytes > 0);
      if (!reading.status.ok()) {
        EXPECT_EQ(reading.status.code(), absl::StatusCode::kInvalidArgument);
        EXPECT_THAT(reading.status.message(), HasSubstr(changed));
      }
      EXPECT_LE(reading.seen.size(), 1u);
    }
  }
}

TEST(RoutingTraceTest, SaysWhereAFileIsDamaged) {
  const TempDir dir;
  const std::string path = dir.File("trace");
  Record(path, {Samples()[0]});
  Record(path, {Samples()[1]});
  std::string bytes = *ReadFile(path, 1 << 20);
  bytes[kHeaderBytes + 15] ^= 1;
  EXPECT_THAT(ReadTrace(dir.Write("damaged", bytes)).status.message(),
              HasSubstr("damaged: the block at byte 44 is damaged"));
  std::string newer = *ReadFile(path, 1 << 20);
  newer[8] = 2;
  EXPECT_THAT(ReadTrace(dir.Write("newer", newer)).status.message(),
              HasSubstr("newer: is a routing trace of version 2; this caravan reads version 1"));
  EXPECT_THAT(ReadTrace(dir.Write("text", std::string(100, 'x'))).status.message(),
              HasSubstr("text: is no routing trace"));
  EXPECT_EQ(ReadTrace(dir.File("missing")).status.code(), absl::StatusCode::kNotFound);
}

/// `value`'s lowest bytes, lowest first.
std::string Bytes(uint64_t value, size_t bytes) {
  std::string out;
  for (size_t i = 0; i < bytes; ++i) out.push_back(static_cast<char>(value >> (8 * i) & 0xff));
  return out;
}

// Blocks whose hash is right, as of a writer with a bug.
TEST(RoutingTraceTest, RefusesEntriesThatTheHeaderDoesNotAllow) {
  const TempDir dir;
  const std::string path = dir.File("trace");
  Record(path, {Samples()[0]});
  const std::string whole = *ReadFile(path, 1 << 20);
  const std::string row = Bytes(1, 2) + Bytes(2, 2) + Bytes(0x3c00, 2) + Bytes(0x3c00, 2);
  const std::string good = Bytes(3, 2) + Bytes(1, 4) + row;
  struct Case {
    std::string entries;
    std::string says;
  };
  const std::vector<Case> cases = {
      {Bytes(5, 2) + Bytes(1, 4) + row, "is of layer 5, which the header does not name"},
      {Bytes(2, 2) + Bytes(1, 4) + row, "is of layer 2, which the header does not name"},
      {Bytes(3, 2) + Bytes(0, 4), "cannot have 0 rows"},
      {Bytes(3, 2) + Bytes(2, 4) + row, "cannot have 2 rows"},
      {Bytes(3, 2) + Bytes(0xffffffff, 4) + row, "cannot have 4294967295 rows"},
      {Bytes(3, 2) + Bytes(1, 4) + Bytes(300, 2) + row.substr(2), "chooses expert 300"},
      {Bytes(3, 2) + Bytes(1, 4) + row.substr(0, 6) + Bytes(0x7c00, 2), "has a weight that is no"},
      {Bytes(3, 2), "ends within its head"},
  };
  for (const Case& each : cases) {
    const std::string entries = good + each.entries;
    const std::string block =
        Bytes(entries.size(), 4) + Bytes(XXH3_64bits(entries.data(), entries.size()), 8) + entries;
    const Reading reading = ReadTrace(dir.Write("wrong", whole + block));
    EXPECT_EQ(reading.status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(reading.status.message(),
                HasSubstr(absl::StrCat("wrong: the entry at byte ", whole.size() + 12 + good.size(),
                                       " ", each.says.substr(0, each.says.find(' ')))));
    EXPECT_THAT(reading.status.message(), HasSubstr(each.says));
    EXPECT_EQ(reading.seen.size(), 2u);  // the block before, and the good entry
  }
}

TEST(RoutingTraceTest, RefusesWhatCannotBeRecorded) {
  const TempDir dir;
  RoutingTraceHeader header = kHeader;
  header.num_experts_per_tok = 301;
  EXPECT_THAT(RoutingTraceWriter::Open(dir.File("trace"), header).status().message(),
              HasSubstr("a token cannot choose 301 of 300 experts"));
  header = kHeader;
  header.first_layer = 65535;
  EXPECT_THAT(RoutingTraceWriter::Open(dir.File("trace"), header).status().message(),
              HasSubstr("there are no 2 layers from 65535 on"));
  EXPECT_FALSE(FileExists(dir.File("trace")));
  EXPECT_THAT(RoutingTraceWriter::Open(dir.path(), kHeader).status().message(),
              HasSubstr(dir.path()));
  EXPECT_THAT(RoutingTraceWriter::Open("/dev/null", kHeader).status().message(),
              HasSubstr("/dev/null: not a regular file"));
}

TEST(RoutingTraceTest, AFullDiskEndsTheRecordingWithOneWarning) {
  const TempDir dir;
  const std::string path = dir.File("trace");
  std::vector<Routing> routings(20000, Samples()[0]);  // 280 kB
  testing::internal::CaptureStderr();
  {
    const FileSizeLimit limit(100000);
    Record(path, routings);
  }
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_THAT(log, HasSubstr("routing_trace_ended"));
  EXPECT_THAT(log, HasSubstr(path));
  EXPECT_EQ(std::count(log.begin(), log.end(), '\n'), 1);
  const Reading reading = ReadTrace(path);
  EXPECT_TRUE(reading.status.ok()) << reading.status;
  EXPECT_GT(reading.torn_bytes, 0);
  EXPECT_GT(reading.seen.size(), 1000u);
  EXPECT_EQ(reading.seen.front(), Samples()[0]);
}

}  // namespace
}  // namespace caravan
