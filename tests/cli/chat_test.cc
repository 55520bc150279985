// caravan chat through a pipe and at a terminal.

#include <sys/stat.h>

#include <csignal>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/terminal_process.h"
#include "tests/support/test_cluster.h"

namespace caravan {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kQuestion[] = "What is 75 + 4050?";
constexpr char kAnswer[] = "75 + 4050 = 4125";

class ChatTest : public ::testing::Test {
 protected:
  void SetUp() override { cluster_.Start(1); }

  std::vector<std::string> Command(const std::vector<std::string>& more = {}) const {
    std::vector<std::string> command = {"chat", "--coordinator", cluster_.address(),
                                        "--connect-timeout", "60"};
    command.insert(command.end(), more.begin(), more.end());
    return command;
  }

  TestProcess& Pipe(const std::string& input, const std::vector<std::string>& more = {}) {
    return cluster_.Launch("chat", Command(more), "", cluster_.dir().Write("input", input));
  }

  TerminalProcess AtTerminal(const std::vector<std::string>& more = {}) {
    return TerminalProcess(
        Command(more),
        {{"XDG_STATE_HOME", State()}, {"HOME", cluster_.dir().path()}, {"LANG", "C.UTF-8"}});
  }

  std::string State() const { return cluster_.dir().File("state"); }
  std::string HistoryFile() const { return State() + "/caravan/chat_history"; }

  TestCluster cluster_;
};

TEST_F(ChatTest, APipeGetsTheRepliesAndNothingElse) {
  TestProcess& run = cluster_.StartRun(kQuestion);
  EXPECT_EQ(run.Wait(), 0);
  TestProcess& chat = Pipe(absl::StrCat("\n", kQuestion, "\n/new\n", kQuestion));
  EXPECT_EQ(chat.Wait(), 0) << chat.Transcript();
  EXPECT_EQ(chat.Out(), absl::StrCat(run.Out(), run.Out()));
  EXPECT_EQ(chat.Err(), "A new conversation.\n");
  EXPECT_THAT(chat.Out(), Not(HasSubstr("\033")));
}

TEST(ChatContextTest, LaterTurnsSeeEarlierOnes) {
  // A turn takes 15 tokens of prompt and 70 of reply, of which the 16 of the answer stay: the third
  // does not fit behind two others.
  TestCluster cluster;
  cluster.Start(1, {"--context", "128"});
  const auto chat = [&](const std::string& between) {
    const std::string input =
        absl::StrCat(kQuestion, "\n", between, kQuestion, "\n", between, kQuestion, "\n");
    TestProcess& process =
        cluster.Launch("chat", {"chat", "--coordinator", cluster.address()}, "",
                       cluster.dir().Write(absl::StrCat("input-", between.size()), input));
    EXPECT_EQ(process.Wait(), 0) << process.Transcript();
    return process.Err();
  };
  EXPECT_THAT(chat(""), HasSubstr("cut at the limit"));
  EXPECT_THAT(chat("/new\n"), Not(HasSubstr("cut at the limit")));
}

TEST_F(ChatTest, CommandsAreHeeded) {
  TestProcess& chat = Pipe("/help\n/system Be brief.\n/system\n/quit\nWhat is 75 + 4050?\n");
  EXPECT_EQ(chat.Wait(), 0) << chat.Transcript();
  EXPECT_EQ(chat.Out(), "");
  EXPECT_THAT(chat.Err(), HasSubstr("/system TEXT"));
  EXPECT_THAT(chat.Err(), HasSubstr("The system text is set.\nNo system text.\n"));
  TestProcess& wrong = Pipe("/nosuch\nWhat is 75 + 4050?\n");
  EXPECT_EQ(wrong.Wait(), 2) << wrong.Transcript();
  EXPECT_EQ(wrong.Err(), "caravan: there is no command /nosuch; see /help\n");
  EXPECT_EQ(wrong.Out(), "");
}

TEST_F(ChatTest, AnErrorEndsAPipesChat) {
  TestProcess& chat = Pipe("What is \xff?\nhi\n");
  EXPECT_EQ(chat.Wait(), 2) << chat.Transcript();
  EXPECT_THAT(chat.Err(), HasSubstr("UTF-8"));
}

TEST_F(ChatTest, LinesAreEditedAndRemembered) {
  {
    TerminalProcess chat = AtTerminal();
    chat.WaitFor("/help lists the commands");
    chat.WaitFor("> ");
    // Two characters of two columns and one of three bytes are taken back; Ctrl-A, Ctrl-D and
    // Ctrl-E mend the ends.
    chat.Type(
        "xWhat is 75 + 40你好\x7f\x7f\x01\x04\x05"
        "50?\r");
    chat.WaitFor("\033[2m");  // the thought is dim
    chat.WaitFor(kAnswer);
    chat.WaitFor("> ");
    chat.Type("/new\r");
    chat.WaitFor("A new conversation.");
    chat.WaitFor("> ");
    chat.Type("\033[A\033[A\r");  // the line before the last
    chat.WaitFor(kAnswer);
    chat.WaitFor("> ");
    chat.Type("你好\x01\x04\x04\x04");  // on an empty line Ctrl-D leaves
    EXPECT_EQ(chat.Wait(), 0) << chat.screen();
  }
  EXPECT_EQ(Slurp(HistoryFile()), absl::StrCat(kQuestion, "\n/new\n", kQuestion, "\n"));
  struct stat file = {};
  ASSERT_EQ(::stat(HistoryFile().c_str(), &file), 0);
  EXPECT_EQ(file.st_mode & 0777, 0600u);

  // The next chat has them.
  TerminalProcess chat = AtTerminal();
  chat.WaitFor("> ");
  chat.Type("\033[A\r");
  chat.WaitFor(kAnswer);
  chat.WaitFor("> ");
  chat.Type("/quit\r");
  EXPECT_EQ(chat.Wait(), 0) << chat.screen();
}

TEST_F(ChatTest, WithoutHistoryNothingIsWritten) {
  TerminalProcess chat = AtTerminal({"--no-history"});
  chat.WaitFor("> ");
  chat.Type("/help\r");
  chat.WaitFor("/system TEXT");
  chat.WaitFor("> ");
  chat.Type("\x04");
  EXPECT_EQ(chat.Wait(), 0) << chat.screen();
  EXPECT_EQ(Slurp(HistoryFile()), "");
  struct stat file = {};
  EXPECT_NE(::stat(State().c_str(), &file), 0);
}

TEST_F(ChatTest, CtrlCEndsTheReplyThenTheChat) {
  TerminalProcess chat = AtTerminal({"--temperature", "100", "--seed", "1"});
  chat.WaitFor("> ");
  chat.Type("hi\r");
  chat.WaitFor("\033[2m");
  chat.Type("\x03");
  chat.WaitFor("Ctrl-C once more");
  cluster_.WaitForStatus("no jobs\n");
  chat.WaitFor("> ");
  // A line between them, and the next one is the first again.
  chat.Type("/new\r");
  chat.WaitFor("A new conversation.");
  chat.WaitFor("> ");
  chat.Type("not to be asked\x03");
  chat.WaitFor("Ctrl-C once more");
  chat.WaitFor("> ");
  chat.Type("\x03");
  EXPECT_EQ(chat.Wait(), 130) << chat.screen();
  cluster_.WaitForStatus("no jobs\n");
}

TEST_F(ChatTest, ALineOutlivesAStop) {
  TerminalProcess chat = AtTerminal();
  chat.WaitFor("> ");
  chat.Type("What is 75 + 40xy");
  chat.WaitFor("xy");
  chat.StopAndGoOn();
  chat.WaitFor("> What is 75 + 40xy");
  chat.Type(
      "\x7f\x7f"
      "50?\r");  // still edited here, not by the kernel
  chat.WaitFor(kAnswer);
  chat.WaitFor("> ");
  chat.Type("\x04");
  EXPECT_EQ(chat.Wait(), 0) << chat.screen();
}

TEST_F(ChatTest, SigtermEndsItInMidReply) {
  TerminalProcess chat = AtTerminal({"--temperature", "100", "--seed", "1"});
  chat.WaitFor("> ");
  chat.Type("hi\r");
  chat.WaitFor("\033[2m");
  chat.Signal(SIGTERM);
  EXPECT_EQ(chat.Wait(), 130) << chat.screen();
  cluster_.WaitForStatus("no jobs\n");
}

TEST_F(ChatTest, AnErrorLeavesATerminalsChatOpen) {
  TerminalProcess chat = AtTerminal({"--system", std::string(20000, 'x')});
  chat.WaitFor("> ");
  chat.Type("hi\r");
  chat.WaitFor("more than the context");
  chat.WaitFor("> ");
  chat.Type("/system\r");
  chat.WaitFor("No system text.");
  chat.WaitFor("> ");
  chat.Type("What is \\\r");
  chat.WaitFor("... ");
  chat.Type("75 + 4050?\r");
  chat.WaitFor("> ");
  chat.Type("\x04");
  EXPECT_EQ(chat.Wait(), 0) << chat.screen();
  EXPECT_THAT(Slurp(HistoryFile()), EndsWith("What is \\\n75 + 4050?\n"));
}

}  // namespace
}  // namespace caravan
