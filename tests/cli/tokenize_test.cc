// `caravan tokenize` as a person runs it: the real binary, its standard streams and exit code.

#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

constexpr char kTokenize[] =
    CARAVAN_BINARY " tokenize --tokenizer " CARAVAN_SOURCE_DIR "/models/tiny-r1/tokenizer.json";

class TokenizeTest : public ::testing::Test {
 protected:
  std::string Path(const std::string& name) {
    return ::testing::TempDir() + ::testing::UnitTest::GetInstance()->current_test_info()->name() +
           name;
  }
  std::string Contents(const std::string& name) {
    std::ostringstream text;
    text << std::ifstream(Path(name)).rdbuf();
    return text.str();
  }
  /// Runs the command on `input`; returns its exit code, and fills out_ and error_.
  int Run(const std::string& options, const std::string& input) {
    std::ofstream(Path("in")) << input;
    const std::string command = std::string(kTokenize) + " " + options + " <" + Path("in") + " >" +
                                Path("out") + " 2>" + Path("err");
    const int status = std::system(command.c_str());
    out_ = Contents("out");
    error_ = Contents("err");
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  std::string out_;
  std::string error_;
};

TEST_F(TokenizeTest, EncodesLineByLineAndDecodesBack) {
  const std::string text =
      "{\"text\":\"<｜User｜>What is 75 + 4050?\"}\n{\"text\":\"h\u00E9llo "
      "\u4F60\\n\"}\n{\"text\":\"\"}\n";
  ASSERT_EQ(Run("", text), 0) << error_;
  EXPECT_THAT(out_,
              ::testing::StartsWith("{\"ids\":[2040,278,260,223,25,23,280,223,22,18,23,18,33]}\n"));
  ASSERT_EQ(Run("--decode", out_), 0) << error_;
  EXPECT_EQ(out_, text);
}

TEST_F(TokenizeTest, ABadLineIsNamedAndThoseBeforeItAreAnswered) {
  const std::string good = "{\"text\":\"1\"}\n";
  for (const std::string bad :
       {"{\"txt\":1}", "{\"text\":1}", "{\"text\"", "", "[]", "{\"text\":\"\\ud800\"}"}) {
    EXPECT_EQ(Run("", good + bad + "\n" + good), 2) << bad;
    EXPECT_EQ(out_, "{\"ids\":[19]}\n") << bad;
    EXPECT_THAT(error_, HasSubstr("caravan: standard input: line 2: ")) << bad;
    EXPECT_THAT(error_, ::testing::Not(HasSubstr("json.exception"))) << bad;
  }
  for (const std::string bad : {"{\"ids\":[-1]}", "{\"ids\":[1.5]}", "{\"ids\":[99999]}",
                                "{\"ids\":[18446744073709551615]}", "{\"ids\":7}"}) {
    EXPECT_EQ(Run("--decode", bad), 2) << bad;
    EXPECT_THAT(error_, HasSubstr("line 1: field \"ids\"")) << bad;
  }
}

TEST_F(TokenizeTest, ReadsInputAndOptionsFromFiles) {
  std::ofstream(Path("ids")) << "{\"ids\":[19]}";
  std::ofstream(Path("options")) << "decode = true\ninput = \"" << Path("ids") << "\"\n";
  ASSERT_EQ(Run("--config " + Path("options"), ""), 0) << error_;
  EXPECT_EQ(out_, "{\"text\":\"1\"}\n");
  EXPECT_EQ(Run("--config /nowhere/options", ""), 2);
  std::ofstream(Path("options")) << "decoed = true\n";
  EXPECT_EQ(Run("--config " + Path("options"), ""), 2);
  EXPECT_THAT(error_, HasSubstr("decoed"));
}

TEST_F(TokenizeTest, FilesThatAreNotThereAreNamed) {
  EXPECT_EQ(Run("--input /nowhere/lines", ""), 2);
  EXPECT_THAT(error_, HasSubstr("/nowhere/lines"));
  EXPECT_EQ(Run("--input /", ""), 2);
  EXPECT_NE(std::system(CARAVAN_BINARY " tokenize --tokenizer /nowhere 2>/dev/null"), 0);
}

TEST_F(TokenizeTest, AFullDiskIsAFailure) {
  std::ofstream(Path("in")) << "{\"text\":\"1\"}";
  const std::string command =
      std::string(kTokenize) + " <" + Path("in") + " >/dev/full 2>" + Path("err");
  const int status = std::system(command.c_str());
  EXPECT_EQ(WEXITSTATUS(status), 1);
  EXPECT_THAT(Contents("err"), HasSubstr("standard output"));
}

}  // namespace
}  // namespace caravan
