#include "cluster/box_json.h"

#include <string>

#include "base/json.h"
#include "cluster/known_boxes.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

constexpr char kBox[] = R"({
  "name": "a",
  "cpu": {"cores": 2, "isa": "avx2", "multiply_adds_per_second": 2e11,
          "attention_multiply_adds_per_second": 3e10},
  "memory": {"total_bytes": 16000000000, "read_bytes_per_second": 2.5e10},
  "disk": {"name": "a drive", "bytes": 500000000000, "read_bytes_per_second": 2.1e9,
           "sources": {"read_bytes_per_second": "measured"}},
  "card": "3060"
})";

absl::StatusOr<Box> Parse(const std::string& text) {
  const absl::StatusOr<nlohmann::json> json = ParseJson(text, "box.json");
  EXPECT_TRUE(json.ok()) << json.status();
  return BoxFromJson(*json, "box.json");
}

std::string Replaced(std::string text, const std::string& what, const std::string& by) {
  const size_t at = text.find(what);
  EXPECT_NE(at, std::string::npos) << what;
  return text.replace(at, what.size(), by);
}

TEST(BoxJson, AKnownBoxComesBackAsItWas) {
  for (const Box& box : KnownBoxes()) {
    const auto again = Parse(BoxToJson(box).dump());
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(*again, box) << BoxToJson(box).dump(2);
  }
}

TEST(BoxJson, PartsMayBeWrittenOutOrNamed) {
  const auto box = Parse(kBox);
  ASSERT_TRUE(box.ok()) << box.status();
  EXPECT_EQ(box->cpu.cores, 2);
  EXPECT_EQ(box->memory.bytes, 12'000'000'000);  // all but a quarter
  EXPECT_EQ(box->disk.read_bytes, 2.1e9);
  EXPECT_EQ(box->disk.sources.at("read_bytes_per_second"), "measured");
  EXPECT_EQ(box->card, FindPart<Box::Card>("3060").value());  // generation of the slot not known
  EXPECT_EQ(box->network.bytes, 0);
  const auto slower = Parse(Replaced(kBox, "\"cores\": 2", "\"cores\": 2, \"pcie_generation\": 3"));
  ASSERT_TRUE(slower.ok()) << slower.status();
  EXPECT_EQ(slower->card.pcie_bytes, CardSlotBytes(3));
}

TEST(BoxJson, WrongFieldsAreRefusedByFileAndField) {
  const struct {
    const char* what;
    const char* by;
    const char* error;
  } kCases[] = {
      {"\"name\": \"a\",", "", "box.json: field \"name\" is missing"},
      {"\"cores\": 2", "\"cores\": 0",
       "box.json: cpu: field \"cores\" must be an integer from 1 to 4096"},
      {"\"avx2\"", "\"sse\"", "box.json: cpu: field \"isa\" must be one of avx512, avx2, portable"},
      {"2.5e10", "\"fast\"", "box.json: memory: field \"read_bytes_per_second\" must be a number"},
      {"2.5e10", "-1", "box.json: memory: field \"read_bytes_per_second\" must be a number"},
      {"2.5e10", "2.5e10, \"worker_bytes\": 17000000000",
       "box.json: memory: field \"worker_bytes\" must be an integer from 0 to 16000000000"},
      {"\"a drive\",", "\"a drive\", \"speed\": 3,",
       "box.json: disk: field \"speed\" is not known; there are drives, bytes"},
      {"\"sources\": {\"read_bytes_per_second\"", "\"sources\": {\"rate\"",
       "box.json: disk: sources: field \"rate\" is not known"},
      {"\"measured\"", "7",
       "box.json: disk: sources: field \"read_bytes_per_second\" must be a string"},
      {"\"3060\"", "\"3061\"", "box.json: field \"card\" is wrong: no card is called \"3061\""},
      {"\"3060\"", "3060", "box.json: field \"card\" must be an object"},
      {"\"card\"", "\"gpu\"", "box.json: field \"gpu\" is not known; there are name, cpu"},
  };
  for (const auto& wrong : kCases) {
    const auto box = Parse(Replaced(kBox, wrong.what, wrong.by));
    EXPECT_EQ(box.status().code(), absl::StatusCode::kInvalidArgument) << wrong.by;
    EXPECT_THAT(std::string(box.status().message()), HasSubstr(wrong.error));
  }
}

TEST(BoxLists, EntriesAreKnownBoxesFilesAndBoxes) {
  const TempDir dir;
  dir.Write("a.json", kBox);
  const auto boxes =
      ReadBoxes(dir.Write("boxes.json", std::string(R"({"network": "10gbe", "boxes": [
      {"box": "3060", "count": 2}, {"file": "a.json", "name": "b"}, {"box": "3060"}, {"box": )") +
                                            kBox + "}]}"));
  ASSERT_TRUE(boxes.ok()) << boxes.status();
  ASSERT_EQ(boxes->size(), 3u);
  EXPECT_EQ((*boxes)[0].count, 3);  // equal ones together
  EXPECT_EQ((*boxes)[0].box.name, "3060");
  EXPECT_EQ((*boxes)[0].box.network, FindPart<Box::Network>("10gbe").value());
  EXPECT_EQ((*boxes)[1].box.name, "b");
  EXPECT_EQ((*boxes)[1].box.disk, (*boxes)[2].box.disk);
}

TEST(BoxLists, ABoxAloneIsAList) {
  const TempDir dir;
  const auto boxes = ReadBoxes(dir.Write("box.json", kBox));
  ASSERT_TRUE(boxes.ok()) << boxes.status();
  ASSERT_EQ(boxes->size(), 1u);
  EXPECT_EQ(boxes->front().count, 1);
  EXPECT_TRUE(ReadBoxes(dir.Write("list.json", R"([{"box": "cpu"}])")).ok());
}

TEST(BoxLists, WrongOnesAreRefusedByFileAndField) {
  const TempDir dir;
  const struct {
    const char* text;
    const char* error;
  } kCases[] = {
      {"[]", ": there are no boxes"},
      {"{}", ": field \"boxes\" is missing"},
      {R"([{"count": 1}])", ": boxes[0]: field \"box\" or \"file\" must be there, and not both"},
      {R"([{"box": "3060", "file": "x"}])", ": boxes[0]: field \"box\" or \"file\" must be"},
      {R"([{"box": "3060"}, {"box": "3061"}])", ": boxes[1]: field \"box\" is wrong: no box is"},
      {R"([{"box": "3060", "count": 0}])", ": boxes[0]: field \"count\" must be an integer"},
      {R"([{"box": "3060", "number": 2}])", ": boxes[0]: field \"number\" is not known"},
      {R"([{"box": "3060", "count": 2}])",
       ": field \"network\" is missing, of the list and of box \"3060\""},
      {R"({"boxes": [{"box": "3060", "count": 999}, {"box": "cpu", "count": 2}]})", ": 1001 boxes"},
      {R"({"boxes": [{"box": "3060"}], "network": "wifi"})",
       ": field \"network\" is wrong: no network is called"},
      {R"([{"file": "none.json"}])", "none.json: No such file"},
  };
  for (const auto& wrong : kCases) {
    const std::string path = dir.Write("boxes.json", wrong.text);
    const auto boxes = ReadBoxes(path);
    EXPECT_FALSE(boxes.ok()) << wrong.text;
    EXPECT_THAT(std::string(boxes.status().message()), HasSubstr(wrong.error));
  }
}

}  // namespace
}  // namespace caravan
