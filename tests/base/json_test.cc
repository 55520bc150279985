#include "base/json.h"

#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

std::string ErrorOf(const absl::Status& status) {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  return std::string(status.message());
}

TEST(ParseJsonTest, ReadsValues) {
  const absl::StatusOr<json> value =
      ParseJson(R"({"a": [1, -2.5, "x", null], "b": {"a": true}})", "f");
  ASSERT_TRUE(value.ok()) << value.status();
  EXPECT_EQ((*value)["a"].size(), 4u);
  EXPECT_EQ((*value)["b"]["a"], true);
}

TEST(ParseJsonTest, NamesTheOriginOfWhatIsNotJson) {
  for (const char* text : {"", "{", "{\"a\":}", "[1,]", "{} x", "nul", "\"\xff\"", "1e999", "NaN",
                           "{\"a\":1e999}", "\"\n\""}) {
    EXPECT_THAT(ErrorOf(ParseJson(text, "dir/file.json").status()),
                AllOf(HasSubstr("dir/file.json"), HasSubstr("not valid JSON")))
        << text;
  }
}

TEST(ParseJsonTest, NamesTheFieldInWhoseValueItBreaks) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"a": 1, "b": NaN})", "b"},
      {R"({"a": 1e999, "b": 2})", "a"},
      {R"({"a": {"b": [1, {"c": nul}]}})", "a"},
      {R"({"a": {"k": 1, "k": 2}})", "a"},
      {R"({"a": {"b": 1}, c})", ""},
      {R"({"a": [1], c})", ""},
      {R"({"a": 1 2})", ""},
      {R"([{"a": nul}])", ""},  // not of the outermost object
      {R"({"a": 1})", ""},
  };
  for (const auto& [text, field] : cases) {
    std::string bad_field = "x";
    ParseJson(text, "f", &bad_field).IgnoreError();
    EXPECT_EQ(bad_field, field) << text;
  }
}

TEST(ParseJsonTest, SaysWhereAndWhatInOneSentence) {
  EXPECT_EQ(ErrorOf(ParseJson("{\n \"a\": nul}", "f").status()),
            "f: not valid JSON at line 2, column 10: invalid literal");
  EXPECT_EQ(ErrorOf(ParseJson("{\"a\": 1", "f").status()),
            "f: not valid JSON at column 8: unexpected end of input; expected '}'");
  EXPECT_EQ(ErrorOf(ParseJson("[\"\xff - ; last read: \"]", "f").status()),
            "f: not valid JSON at column 3: invalid string: ill-formed UTF-8 byte");
  EXPECT_EQ(ErrorOf(ParseJson("1e999", "f").status()), "f: not valid JSON: a number is too large");
}

TEST(ParseJsonTest, RefusesARepeatedKeyInOneObjectOnly) {
  EXPECT_THAT(ErrorOf(ParseJson(R"({"a": {"k": 1, "k": 2}})", "f").status()),
              HasSubstr("key \"k\" is repeated"));
  EXPECT_THAT(ErrorOf(ParseJson(R"([{"k": {}, "j": [], "k": 2}])", "f").status()),
              HasSubstr("key \"k\" is repeated"));
  EXPECT_TRUE(ParseJson(R"([{"k": {"k": 1}}, {"k": 2}])", "f").ok());
}

TEST(ParseJsonTest, BoundsNesting) {
  const auto nested = [](int depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_TRUE(ParseJson(nested(64), "f").ok());
  EXPECT_THAT(ErrorOf(ParseJson(nested(100), "f").status()), HasSubstr("nested deeper than 64"));
  EXPECT_THAT(ErrorOf(ParseJson(nested(1000000), "f").status()), HasSubstr("nested deeper"));
  std::string objects;
  for (int i = 0; i < 100000; ++i) objects += "{\"a\":";
  ErrorOf(ParseJson(objects, "f").status());
}

TEST(ParseJsonTest, ReadsALongListOfObjects) {
  // What takes the square of its length takes hours here, not a second.
  std::string text = "[{}";
  for (int i = 1; i < 1'000'000; ++i) text += ",{}";
  const absl::StatusOr<nlohmann::json> list = ParseJson(text + "]", "list");
  ASSERT_TRUE(list.ok()) << list.status();
  EXPECT_EQ(list->size(), 1'000'000u);
}

TEST(ReadJsonFileTest, NamesThePath) {
  const TempDir dir;
  EXPECT_EQ(ReadJsonFile(dir.File("none.json")).status().code(), absl::StatusCode::kNotFound);
  const std::string path = dir.Write("x.json", "{\"a\": 7}");
  EXPECT_EQ((*ReadJsonFile(path))["a"], 7);
  EXPECT_THAT(ErrorOf(ReadJsonFile(path, 7).status()), HasSubstr(path));
  EXPECT_THAT(ErrorOf(ReadJsonFile(dir.Write("bad.json", "{")).status()), HasSubstr("bad.json"));
}

class JsonFieldsTest : public ::testing::Test {
 protected:
  JsonFields Fields(const char* text) {
    value_ = json::parse(text);
    return *JsonFields::Of(value_, "origin");
  }

 private:
  json value_;
};

TEST_F(JsonFieldsTest, IsOfObjectsOnly) {
  const json list = json::array();
  EXPECT_THAT(ErrorOf(JsonFields::Of(list, "origin").status()), HasSubstr("origin"));
}

TEST_F(JsonFieldsTest, TakesIntegersInRange) {
  const JsonFields fields = Fields(
      R"({"i": -3, "f": 2.0, "s": "1", "b": true, "n": null, "max": 9223372036854775807,
          "big": 9223372036854775808, "huge": 18446744073709551616})");
  EXPECT_EQ(*fields.Int("i", -3, 5), -3);
  EXPECT_EQ(*fields.Int("max", 0, INT64_MAX), INT64_MAX);
  EXPECT_EQ(*fields.Int("n", 0, 5, 4), 4);
  EXPECT_EQ(*fields.Int("none", 0, 5, 4), 4);
  for (const char* name : {"f", "s", "b", "big", "huge"}) {
    EXPECT_THAT(ErrorOf(fields.Int(name, INT64_MIN, INT64_MAX, 4).status()),
                AllOf(HasSubstr("origin"), HasSubstr(name)));
  }
  EXPECT_THAT(ErrorOf(fields.Int("i", -2, 5).status()), HasSubstr("from -2 to 5"));
  EXPECT_THAT(ErrorOf(fields.Int("i", -5, -4).status()), HasSubstr("from -5 to -4"));
  EXPECT_THAT(ErrorOf(fields.Int("n", 0, 5).status()), HasSubstr("\"n\" is missing"));
}

TEST_F(JsonFieldsTest, TakesNumbersInRange) {
  const JsonFields fields = Fields(R"({"i": 3, "f": -2.5, "s": "1"})");
  EXPECT_EQ(*fields.Number("i", 0, 3), 3.0);
  EXPECT_EQ(*fields.Number("f", -2.5, 0), -2.5);
  EXPECT_EQ(*fields.Number("none", 0, 1, 0.5), 0.5);
  EXPECT_THAT(ErrorOf(fields.Number("f", 0, 1).status()), HasSubstr("\"f\" must be a number"));
  EXPECT_THAT(ErrorOf(fields.Number("s", 0, 1).status()), HasSubstr("\"s\" must be a number"));
  EXPECT_THAT(ErrorOf(fields.Number("none", 0, 1).status()), HasSubstr("\"none\" is missing"));
  const json nan = {{"x", std::numeric_limits<double>::quiet_NaN()}};
  EXPECT_FALSE(JsonFields::Of(nan, "origin")->Number("x", -1, 1).ok());
}

TEST_F(JsonFieldsTest, TakesEachTypeAsItself) {
  const JsonFields fields = Fields(R"({"b": false, "s": "x", "o": {"k": 1}, "a": [1], "n": null})");
  EXPECT_FALSE(*fields.Bool("b"));
  EXPECT_TRUE(*fields.Bool("none", true));
  EXPECT_EQ(*fields.String("s"), "x");
  EXPECT_EQ(*fields.String("n", "y"), "y");
  EXPECT_EQ(*fields.Object("o")->Int("k", 0, 1), 1);
  EXPECT_EQ((*fields.Array("a"))->size(), 1u);
  EXPECT_TRUE(fields.Has("b"));
  EXPECT_FALSE(fields.Has("n"));
  EXPECT_FALSE(fields.Has("none"));
  EXPECT_THAT(ErrorOf(fields.Bool("s", true).status()), HasSubstr("\"s\" must be true or false"));
  EXPECT_THAT(ErrorOf(fields.String("b").status()), HasSubstr("\"b\" must be a string"));
  EXPECT_THAT(ErrorOf(fields.Object("a").status()), HasSubstr("\"a\" must be an object"));
  EXPECT_THAT(ErrorOf(fields.Array("o").status()), HasSubstr("\"o\" must be an array"));
  EXPECT_THAT(ErrorOf(fields.Object("n").status()), HasSubstr("\"n\" is missing"));
  EXPECT_THAT(ErrorOf(fields.Object("o")->Bool("k").status()),
              AllOf(HasSubstr("origin: o"), HasSubstr("\"k\"")));
}

}  // namespace
}  // namespace caravan
