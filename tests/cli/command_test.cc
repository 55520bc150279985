// What the commands say to wrong flags and files, and to nobody there.

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "base/subprocess.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/cli/command_testing.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_cluster.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(CommandTest, WrongFlagsGetASentenceThatNamesThem) {
  TestCluster cluster;
  const std::vector<Refusal> refusals = {
      {{"nosuch"}, 2, "no subcommand nosuch"},
      {{"status", "--nosuch"}, 2, "--nosuch"},
      {{"coordinator"}, 2, "--model is required"},
      {{"coordinator", "--model", kModel, "--listen", "garbage"},
       2,
       "\"garbage\" is not HOST:PORT"},
      {{"coordinator", "--model", kModel, "--listen", "127.0.0.1:99999"}, 2, "from 0 to 65535"},
      {{"coordinator", "--model", kModel, "--context", "5000"}, 2, "a context of 5000 tokens"},
      {{"coordinator", "--model", kModel, "--prefill-chunk", "0"}, 2, "--prefill-chunk"},
      {{"coordinator", "--model", kModel, "--rejoin-delay", "-1"}, 2, "--rejoin-delay"},
      {{"coordinator", "--model", kModel, "--speculate", "yes"}, 2, "--speculate"},
      {{"coordinator", "--model", kModel, "--for", "fun"}, 2, "--for"},
      {{"worker", "--coordinator", "localhost:1", "--box", ""}, 2, "--box"},
      {{"worker"}, 2, "--coordinator is required"},
      {{"coordinator", "--model", kModel, "--listen", "0.0.0.0:0"},
       2,
       "--listen: without certificates only this machine is served, and 0.0.0.0:0 is beyond its"},
      {{"coordinator", "--model", kModel, "--certs", "/nonexistent"}, 2, "/nonexistent/ca.pem"},
      {{"coordinator", "--model", kModel, "--certs", ".", "--insecure"}, 2, "exclude each other"},
      {{"worker", "--coordinator", "10.9.9.9:1"}, 2, "10.9.9.9:1 is not on this machine"},
      {{"worker", "--coordinator", "localhost:1", "--listen", "[::]:0"}, 2, "--listen: without"},
      {{"worker", "--coordinator", "localhost:1", "--trusted-network", "10.0.0.1/8"},
       2,
       "--trusted-network: \"10.0.0.1/8\" is no network such as 10.0.0.0/8"},
      {{"status", "--certs", "/nonexistent"}, 2, "/nonexistent/ca.pem"},
      {{"certs"}, 2, "subcommand is required"},
      {{"certs", "init", ""}, 2, "must not be empty"},
      {{"certs", "init", "/nonexistent/x", "--name", "a/b"}, 2, "is no name for a certificate"},
      {{"certs", "add-box", "box-a", "/nonexistent"}, 2, "/nonexistent/ca.key"},
      {{"certs", "add-box", "box-a", "/nonexistent", "--days", "0"}, 2, "--days"},
      {{"certs", "join", "localhost:1", "abc", "/nonexistent/x"}, 2, "that is no join token"},
      {{"certs", "token", "box a", "/nonexistent"}, 2, "is no name for a certificate"},
      {{"worker", "--coordinator", "nowhere"}, 2, "--coordinator: \"nowhere\" is not HOST:PORT"},
      {{"worker", "--coordinator", "localhost:1", "--ram", "lots"},
       2,
       "--ram: \"lots\" is not a size"},
      {{"worker", "--coordinator", "localhost:1", "--ram", "0"}, 2, "--ram"},
      {{"worker", "--coordinator", "localhost:1", "--advertise", ":1"}, 2, "--advertise"},
      {{"worker", "--coordinator", "localhost:1", "--kv-disk", "much"},
       2,
       "--kv-disk: \"much\" is not a size"},
      {{"worker", "--coordinator", "localhost:1", "--kv-disk", "0"},
       2,
       "--kv-disk: must be more than 0"},
      {{"worker", "--coordinator", "localhost:1", "--kv-disk", "1MiB", "--kv-disk-dir", ""},
       2,
       "--kv-disk-dir"},
      {{"worker", "--coordinator", "localhost:1", "--kv-disk-dir", "."},
       2,
       "--kv-disk-dir requires --kv-disk"},
      {{"worker", "--coordinator", "localhost:1", "--kv-disk", "1MiB", "--kv-disk-dir",
        "/nonexistent"},
       2,
       "--kv-disk-dir: /nonexistent: No such file or directory"},
      {{"worker", "--coordinator", "localhost:1", "--kv-disk", "4096TiB"},
       2,
       "--kv-disk 4096 TiB: . has "},
      {{"worker", "--coordinator", "localhost:1", "--kv-archive", "1MiB", "--kv-archive-dir",
        "/proc/nonexistent"},
       2,
       "--kv-archive-dir: /proc/nonexistent: "},
      {{"worker", "--coordinator", "localhost:1", "--kv-archive-dir", "."},
       2,
       "--kv-archive-dir requires --kv-archive"},
      {{"worker", "--coordinator", "localhost:1", "--kv-replica", "peer"},
       2,
       "--kv-replica peer: give --kv-archive SIZE, the disk that it may take"},
      {{"worker", "--coordinator", "localhost:1", "--kv-replica", "disk"},
       2,
       "--kv-replica disk: give --kv-archive SIZE"},
      {{"worker", "--coordinator", "localhost:1", "--kv-archive", "1MiB", "--kv-replica", "none"},
       2,
       "--kv-replica none: --kv-archive SIZE says that KV blocks are kept"},
      {{"worker", "--coordinator", "localhost:1", "--kv-replica", "all"}, 2, "--kv-replica"},
      {{"verify", "--model", kModel, "--golden", "g", "--kv-disk", "1MiB"},
       2,
       "--kv-disk requires --ram"},
      {{"worker", "--coordinator", "localhost:1", "--mirror", "."}, 2, "--mirror requires --model"},
      {{"worker", "--coordinator", "localhost:1", "--model", ".", "--mirror", "/nonexistent"},
       2,
       "--mirror: /nonexistent: not a directory"},
      {{"run", "hi", "--coordinator", "zz"}, 2, "--coordinator: \"zz\" is not HOST:PORT"},
      {{"run", "hi", "--temperature", "-1"}, 2, "--temperature"},
      {{"run", "hi", "--top-p", "1.5"}, 2, "--top-p"},
      {{"chat", "--coordinator", "zz"}, 2, "--coordinator: \"zz\" is not HOST:PORT"},
      {{"chat", "--temperature", "-1"}, 2, "--temperature"},
      {{"submit"}, 2, "file is required"},
      {{"submit", "x", "--output", "y"}, 2, "--output requires --wait"},
      {{"cancel"}, 2, "id is required"},
      {{"cancel", "seven"}, 2, "\"seven\" is neither a job's number nor a batch's id"},
      {{"jobs", "--connect-timeout", "x"}, 2, "--connect-timeout"},
      {{"verify", "--model", kModel, "--golden", "x", "--chunk", "0"}, 2, "--chunk"},
      {{"verify", "--model", kModel, "--golden", "x", "--kv", "f17"}, 2, "--kv"},
      {{"verify", "--model", kModel, "--golden", "x", "--tolerance", "-1"}, 2, "--tolerance: -1"},
      {{"verify", "--model", kModel, "--golden", "x", "--tolerance", "nan"}, 2, "--tolerance: nan"},
      {{"bench", "--model", kModel, "--prompt", ""}, 2, "--prompt: must not be empty"},
      {{"bench", "--model", kModel, "--workers", "7"},
       2,
       "--workers 7: this model splits over 1 to 6 workers"},
      {{"bench", "serve", "--model", kModel, "--workers", "1,7"},
       2,
       "--workers 7: this model splits over 1 to 6 workers"},
      {{"calibrate", "--model", kModel, "--text", absl::StrCat(kModel, "/config.json"), "--out",
        ""},
       2,
       "--out: "},
      {{"calibrate", "--model", kModel, "--text", absl::StrCat(kModel, "/config.json"), "--out",
        "/tmp"},
       2,
       "--out: /tmp: is a directory"},
      {{"pack", "--model", kModel, "--out", ""}, 2, "--out: must not be empty"},
      {{"worker", "--coordinator", "localhost:1", "--kv", "F16"}, 2, "--kv"},
      {{"worker", "--coordinator", "localhost:1", "--isa", "sse"}, 2, "--isa"},
      {{"worker", "--coordinator", "localhost:1", "--transport", "rdma"}, 2, "--transport"},
      {{"worker", "--coordinator", "localhost:1", "--transport", "nccl"},
       2,
       "--transport nccl: cpu is no card"},
      {{"worker", "--coordinator", "localhost:1", "--expert-policy", "fifo"},
       2,
       "--expert-policy: fifo not in {lru,lfu,router}"},
      {{"worker", "--coordinator", "localhost:1", "--verify-experts", "always"},
       2,
       "--verify-experts: always not in {every,first,never}"},
      {{"worker", "--coordinator", "localhost:1", "--expert-heat", "/nowhere"},
       2,
       "--expert-heat: /nowhere: not a directory"},
      {{"worker", "--coordinator", "localhost:1", "--record-routing", "/nowhere/trace"},
       2,
       "--record-routing: /nowhere: not a directory"},
      {{"verify", "--model", kModel, "--golden", "x", "--expert-policy", "Lru"}, 2, "lru,lfu"},
      {{"eval", "--model", kModel, "--tasks", "x", "--verify-experts", "1"}, 2, "never"},
      {{"verify", "--model", kModel, "--golden",
        absl::StrCat(kGoldens, "tiny-r1-golden.safetensors"), "--record-routing", "/nowhere/trace"},
       2,
       "--record-routing: /nowhere/trace-1-6: No such file or directory"},
      {{"synth", "--seed", "-1"}, 2, "--seed: -1 is less than 0"},
      {{"run", "hi", "--seed", "-1"}, 2, "--seed: -1 is less than 0"},
      {{"run", "hi", "--seed", "18446744073709551616"}, 2, "is too large"},
      {{"run", "hi", "--top-k", "-1"}, 2, "--top-k: -1 is less than 0"},
      {{"chat", "--max-tokens", "-1"}, 2, "--max-tokens: -1 is less than 0"},
      {{"run", "hi", "--temperature", "nan"}, 2, "--temperature: nan is not a number"},
      {{"bench", "serve", "--model", kModel, "--seed", "-1"}, 2, "--seed: -1 is less than 0"},
      {{"bench", "cache", "--share", "0.5,nan"}, 2, "--share: nan is not a number"},
      {{"bench", "plan"}, 2, "--model is required"},
      {{"bench", "plan", "--model", kModel, "--loads", "x"},
       2,
       "--loads: \"x\" is not JOBS:PROMPT:REPLY"},
      {{"bench", "plan", "--model", kModel, "--link", "fast"},
       2,
       "--link: \"fast\" is not MB-PER-SECOND/MILLISECONDS"},
      {{"bench", "plan", "--model", kModel, "--workers", "0"}, 2, "--workers: Value 0"},
      {{"bench", "plan", "--model", kModel, "--foretell", "/nonexistent/p.json"},
       2,
       "/nonexistent/p.json"},
      {{"worker", "--coordinator", "localhost:1", "--record-routing", ""},
       2,
       "--record-routing: must not be empty"},
      {{"worker", "--coordinator", "localhost:1", "--expert-heat", ""},
       2,
       "--expert-heat: must not be empty"},
      {{"eval", "--model", kModel, "--tasks", ""}, 2, "--tasks: must not be empty"},
      {{"eval", "--model", kModel, "--text", absl::StrCat(kModel, "/config.json"), "--ram", "1KiB"},
       2,
       "--ram 1.00 KiB: the model needs "},
      {{"tokenize"}, 2, "--tokenizer is required"},
      {{"plan"}, 2, "--model is required"},
      {{"plan", "--model", "/nonexistent.json"}, 2, "/nonexistent.json: No such file or directory"},
      {{"plan", "--model", kModel, "--box", "5090"},
       2,
       "--box: no box is called \"5090\"; there are"},
      {{"plan", "--model", kModel, "--count", "1,7"}, 2, "--count: 7 boxes for 6 layers"},
      {{"plan", "--model", kModel, "--count", "0"}, 2, "--count"},
      {{"plan", "--model", kModel, "--network", "wifi"},
       2,
       "--network: no network is called \"wifi\"; there are 1gbe, 2.5gbe, 10gbe"},
      {{"plan", "--model", kModel, "--boxes", "/nonexistent.json"}, 2, "No such file"},
      {{"plan", "--model", kModel, "--boxes", absl::StrCat(kModel, "/config.json")},
       2,
       "config.json: field \"architectures\" is not known; there are boxes, network"},
      {{"plan", "--model", kModel, "--boxes", "x", "--box", "3060"}, 2, "excludes"},
      {{"plan", "--model", kModel, "--for", "speed"}, 2, "--for"},
      {{"plan", "--model", kModel, "--context", "512", "--prompt", "513"},
       2,
       "--prompt: more tokens than --context"},
      {{"plan", "--model", kModel, "--bits", "4.5"}, 2, "has its formats; they are for a"},
      {{"plan", "--model", CARAVAN_SOURCE_DIR "/bench/shapes/deepseek-r1.json", "--bits", "4"},
       2,
       "--bits: no format has 4 bits a weight; there are 2.6 (Q2_K)"},
      {{"simulate", "--model", kModel}, 2, "--boxes is required"},
      {{"simulate", "--model", kModel, "--boxes", "/nonexistent.json"}, 2, "No such file"},
      {{"simulate", "--model", kModel, "--boxes", "x", "--rate", "0"}, 2, "--rate"},
      {{"plan", "--model", kModel, "--html", "/nonexistent/page.html"}, 2, "--html: /nonexistent"},
      {{"plan", "--model", kModel, "--context", "100000000"}, 2, "--context"},
      {{"plan", "--model", kModel, "--preset", "4bit"}, 2, "has its formats; they are for a"},
      {{"probe", "nosuch"}, 2, "nosuch"},
      {{"probe", "--disk", "/nonexistent", "--seconds", "0.01", "--device", "cpu"},
       2,
       "/nonexistent: No such file or directory"},
      {{"probe", "--out", "/nonexistent/box.json"}, 2, "--out: /nonexistent/box.json"},
      {{"probe", "--size", "1MiB"}, 2, "--size: 1.00 MiB is less than 64.0 MiB"},
      {{"probe", "--device", "gpu"}, 2, "--device gpu: \"gpu\" is no device"},
      {{"probe", "--link", "nowhere"}, 2, "--link: \"nowhere\" is not HOST:PORT"},
      {{"probe", "--seconds", "11"}, 2, "--seconds"},
      {{"probe", "experts"}, 2, "--model is required"},
      {{"probe", "experts", "--model", kModel, "--device", "cpu"}, 2, "shared with a card"},
      {{"probe", "experts", "--model", kModel, "--device", "gpu"}, 2, "\"gpu\" is no device"},
      {{"worker", "--coordinator", "localhost:1", "--device", "cuda:x"},
       2,
       "\"cuda:x\" is no device"},
      {{"worker", "--coordinator", "localhost:1", "--transport", "nccl"},
       2,
       "--transport nccl: cpu is no card"},
      {{"worker", "--coordinator", "localhost:1", "--vram", "1GiB"}, 2, "--vram: the CPU has none"},
      {{"worker", "--coordinator", "localhost:1", "--vram", "0"}, 2, "--vram: must be more than 0"},
      {{"probe", "disk"}, 2, "path is required"},
      {{"probe", "link"}, 2, "address is required"},
      {{"probe", "link", "nowhere"}, 2, "\"nowhere\" is not HOST:PORT"},
      {{"probe", "link", "h:1", "--seconds", "11"}, 2, "--seconds"},
      {{"probe", "link", "h:1", "--activations", "2MiB"},
       2,
       "--activations: 2.00 MiB is more than"},
      {{"probe", "listen", "nowhere"}, 2, "\"nowhere\" is not HOST:PORT"},
      {{"probe", "listen", "192.0.2.1:0"}, 2, "without certificates only this machine is served"},
      {{"probe", "listen", "--insecure", "192.0.2.1:0"}, 2, "cannot listen on 192.0.2.1:0"},
      {{"probe", "disk", "/nonexistent"}, 2, "/nonexistent: No such file or directory"},
      {{"probe", "disk", "/dev/null"}, 2, "/dev/null: not a regular file"},
      {{"probe", "disk", absl::StrCat(kModel, "/config.json")}, 2, "tell nothing about a disk"},
      {{"probe", "disk", ".", "--size", "lots"}, 2, "--size: \"lots\" is not a size"},
      {{"probe", "disk", ".", "--size", "1MiB"}, 2, "--size: 1MiB is less than 64.0 MiB"},
      {{"probe", "disk", ".", "--size", "1000TiB"}, 2, "has no room there, where"},
      {{"probe", "disk", ".", "--seconds", "0"}, 2, "--seconds"},
      {{"probe", "disk", ".", "--seconds", "nan"}, 2, "--seconds: nan is not a number"},
      {{"plan", "--model", kModel, "--target", "nan"}, 2, "--target: nan is not a number"},
  };
  for (const Refusal& refusal : refusals) ExpectRefusal(cluster, refusal);
}

TEST(CommandTest, ACardThatIsNotThereIsSaidWithTheFlagThatNamesIt) {
  TestCluster cluster;
  TestProcess& worker =
      cluster.Launch("worker", {"worker", "--coordinator", "localhost:1", "--device", "cuda:4096"});
  // Without a driver or a card a later try may do better; not so where there are other cards, or
  // the program was built without CUDA.
  EXPECT_THAT(worker.Wait(), ::testing::AnyOf(2, 3)) << worker.Transcript();
  EXPECT_THAT(worker.Err(), HasSubstr("--device cuda:4096: "));
}

TEST(CommandTest, NobodyThereIsSaidWithTheAddress) {
  TestCluster cluster;
  // Port 1 is tcpmux, which no machine of ours runs.
  for (const std::vector<std::string>& command :
       {std::vector<std::string>{"run", "hi"},
        {"status"},
        {"worker"},
        {"chat"},
        {"jobs"},
        {"cancel", "1"},
        {"submit", absl::StrCat(kModel, "/config.json")}}) {
    std::vector<std::string> arguments = command;
    arguments.insert(arguments.end(), {"--coordinator", "127.0.0.1:1", "--connect-timeout", "0.3"});
    ExpectRefusal(cluster, {arguments, 3, "no coordinator answers at 127.0.0.1:1 within"});
  }
}

TEST(CommandTest, AWorkerThatIsEarlySaysThatItWaits) {
  TestCluster cluster;
  cluster.StartCoordinator({});
  const std::string address = cluster.address();
  cluster.coordinator().Signal(SIGTERM);
  EXPECT_EQ(cluster.coordinator().Wait(), 0);
  TestProcess& worker =
      cluster.Launch("worker", {"worker", "--coordinator", address, "--ram", "1MiB"});
  worker.WaitForErr(absl::StrCat("waiting_for_coordinator coordinator=", address));
  worker.Signal(SIGTERM);
  EXPECT_EQ(worker.Wait(), 0);
}

TEST(CommandTest, WrongFilesGetASentenceThatNamesThem) {
  TestCluster cluster;
  const std::string copy = cluster.dir().File("model");
  const auto fresh_copy = [&] {
    std::filesystem::remove_all(copy);
    std::filesystem::copy(kModel, copy);
  };
  const std::vector<std::string> start = {"coordinator", "--model", copy, "--listen",
                                          "127.0.0.1:0"};
  ExpectRefusal(cluster, {start, 2, copy + "/config.json"});

  fresh_copy();
  WriteText(copy + "/config.json", R"({"model_type": "llama"})");
  ExpectRefusal(cluster, {start, 2, "llama"});

  fresh_copy();
  const std::string shard = copy + "/model-00002-of-000002.safetensors";
  std::filesystem::resize_file(shard, 1000000);
  ExpectRefusal(cluster, {start, 2, shard});
  std::filesystem::remove(shard);
  ExpectRefusal(cluster, {start, 2, "model-00002-of-000002.safetensors"});

  fresh_copy();
  WriteText(copy + "/tokenizer.json", R"({"model": {"type": "BPE", "vocab": {"a": 0},
      "merges": ["a b c"]}})");
  ExpectRefusal(cluster, {start, 2, copy + "/tokenizer.json"});

  fresh_copy();
  WriteText(copy + "/config.json", absl::StrReplaceAll(Slurp(copy + "/config.json"),
                                                       {{"\"num_nextn_predict_layers\": 1",
                                                         "\"num_nextn_predict_layers\": 0"}}));
  std::vector<std::string> speculate = start;
  speculate.insert(speculate.end(), {"--speculate", "mtp"});
  ExpectRefusal(cluster, {speculate, 2, "cannot speculate by mtp: the model has no layer of"});

  const std::string tasks = cluster.dir().File("tasks.jsonl");
  WriteText(tasks, "{\"question\": \"a\", \"answer\": \"b\"}\n{\"question\": 3}\n");
  ExpectRefusal(cluster, {{"eval", "--model", kModel, "--tasks", tasks},
                          2,
                          tasks + ":2: field \"question\" must be a string"});
  WriteText(tasks, "\n{\"question\": }\n");
  ExpectRefusal(cluster, {{"eval", "--model", kModel, "--tasks", tasks},
                          2,
                          tasks + ":2: not valid JSON at column 14: unexpected '}'"});
  ExpectRefusal(cluster, {{"eval", "--model", kModel, "--tasks", tasks + ".none"},
                          2,
                          tasks + ".none: No such file or directory"});
  ExpectRefusal(cluster, {{"eval", "--model", kModel, "--tasks", cluster.dir().path()},
                          2,
                          cluster.dir().path() + ": not a regular file"});
  ExpectRefusal(cluster, {{"verify", "--model", kModel, "--golden", tasks}, 2, tasks});
  WriteText(tasks, "{\"name\": \"a\"}");
  ExpectRefusal(cluster, {{"worker", "--coordinator", "localhost:1", "--box", tasks},
                          2,
                          absl::StrCat("--box: ", tasks, ": field \"cpu\" is missing")});
  ExpectRefusal(cluster, {{"verify", "--model", kModel, "--golden",
                           absl::StrCat(kGoldens, "v3-like/golden.safetensors")},
                          2,
                          "v3-like/golden.safetensors: logits_0 is F32 ["});
  ExpectRefusal(cluster, {{"coordinator", "--model", kModel, "--listen", "127.0.0.1:0",
                           "--address-file", "/nonexistent/file"},
                          2,
                          "--address-file: /nonexistent/file: No such file or directory"});
}

TEST(CommandTest, BenchSaysWhyItsClusterDoesNotServe) {
  TestCluster cluster;
  const std::string copy = cluster.dir().File("model");
  std::filesystem::copy(kModel, copy);
  WriteText(copy + "/tokenizer.json", "{");
  ExpectRefusal(cluster,
                {{"bench", "--model", copy},
                 2,
                 absl::StrCat("the coordinator does not start: ", copy, "/tokenizer.json: ")});
  // All workers are there, and nothing will ever change.
  ExpectRefusal(cluster,
                {{"bench", "serve", "--model", kModel, "--workers", "1", "--jobs", "1",
                  "--coordinator-options", "--workers 3"},
                 1,
                 "the cluster does not come to serve: waiting for 2 more workers to join"});
  // A KV cache that the model cannot have is refused before anything starts.
  for (const std::vector<std::string>& bench :
       {std::vector<std::string>{"bench"}, {"bench", "serve"}}) {
    std::vector<std::string> arguments = bench;
    arguments.insert(arguments.end(),
                     {"--model", absl::StrCat(kGoldens, "v3-like"), "--kv", "q8_0"});
    ExpectRefusal(cluster, {arguments, 2, "--kv q8_0: "});
  }
}

TEST(CommandTest, OutputThatCannotBeWrittenIsAFailure) {
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{"pack", "--help"}, {"--version"}}) {
    const TempDir dir;
    Subprocess::Options options;
    options.command = {CARAVAN_BINARY};
    options.command.insert(options.command.end(), arguments.begin(), arguments.end());
    options.stdout_path = "/dev/full";
    options.stderr_path = dir.File("errors");
    absl::StatusOr<Subprocess> process = Subprocess::Start(options);
    ASSERT_TRUE(process.ok()) << process.status();
    EXPECT_EQ(process->Wait(kTestDeadline), 1);
    EXPECT_THAT(Slurp(options.stderr_path), HasSubstr("standard output cannot be written"));
  }
}

TEST(CommandTest, CalibratesAModelOfAShortContext) {
  TestCluster cluster;
  const std::string copy = cluster.dir().File("model");
  std::filesystem::copy(kModel, copy);
  WriteText(
      copy + "/config.json",
      absl::StrReplaceAll(Slurp(copy + "/config.json"),
                          {{"\"max_position_embeddings\": 4096", "\"max_position_embeddings\": 64"},
                           {"\"original_max_position_embeddings\": 512",
                            "\"original_max_position_embeddings\": 64"}}));
  const std::string text = cluster.dir().Write("text", "What is 12 + 43?");
  const std::vector<std::string> calibrate = {
      "calibrate", "--model", copy, "--text", text, "--out", cluster.dir().File("x.imatrix")};
  TestProcess& process = cluster.Launch("calibrate", calibrate);
  EXPECT_EQ(process.Wait(), 0) << process.Transcript();
  std::vector<std::string> wide = calibrate;
  wide.insert(wide.end(), {"--window", "65"});
  ExpectRefusal(cluster, {wide, 2, "--window 65: more than the model's context of 64 tokens"});
}

TEST(CommandTest, ASecondServerOnAPortIsRefused) {
  TestCluster cluster;
  cluster.StartCoordinator({});
  const std::string says = absl::StrCat("cannot listen on ", cluster.address());
  ExpectRefusal(cluster,
                {{"coordinator", "--model", kModel, "--listen", cluster.address()}, 2, says});
  ExpectRefusal(
      cluster,
      {{"worker", "--coordinator", cluster.address(), "--listen", cluster.address()}, 2, says});
}

TEST(CommandTest, PromptsThatCannotBeRunAreRefused) {
  TestCluster cluster;
  cluster.StartCoordinator({"--context", "64"});
  const auto expect = [&](TestProcess& run, const std::string& says) {
    EXPECT_EQ(run.Wait(), 2) << run.Transcript();
    EXPECT_THAT(run.Err(), HasSubstr(says));
  };
  expect(cluster.StartRun(""), "empty");
  expect(cluster.StartRun("What is \xff\xfe?"), "UTF-8");
  std::string words;
  for (int i = 0; i < 200; ++i) absl::StrAppend(&words, "word ");
  expect(cluster.StartRun(words), "more than the context of 64");
  expect(cluster.StartRun("hi", {"--temperature", "nan"}), "temperature");
}

TEST(CommandTest, EveryOptionIsExplained) {
  TestCluster cluster;
  for (const char* command :
       {"coordinator", "worker", "run", "chat", "submit", "jobs", "cancel", "status", "verify",
        "eval", "tokenize", "bench", "pack", "synth", "calibrate"}) {
    TestProcess& help = cluster.Launch("help", {command, "--help"});
    EXPECT_EQ(help.Wait(), 0);
    const std::vector<std::string> lines = absl::StrSplit(help.Out(), '\n');
    int options = 0;
    for (size_t i = 0; i < lines.size(); ++i) {
      if (!absl::StartsWith(lines[i], "  -")) continue;
      ++options;
      // The explanation stands from column 30 on, on this line or the next.
      const bool here = lines[i].size() > 30 && lines[i][29] == ' ' && lines[i][30] != ' ';
      const bool below = i + 1 < lines.size() && lines[i + 1].size() > 30 &&
                         absl::StartsWith(lines[i + 1], std::string(30, ' '));
      EXPECT_TRUE(here || below) << command << ": " << lines[i];
    }
    EXPECT_GE(options, 3) << command;
  }
}

TEST(CommandTest, OptionsMayComeFromAFile) {
  TestCluster cluster;
  const std::string config = cluster.dir().File("status.toml");
  WriteText(config, "coordinator = \"127.0.0.1:1\"\nconnect-timeout = 0.2\n");
  ExpectRefusal(cluster, {{"status", "--config", config}, 3, "127.0.0.1:1 within 0.2 s"});
  // The command line wins.
  ExpectRefusal(
      cluster,
      {{"status", "--config", config, "--connect-timeout", "0.1"}, 3, "127.0.0.1:1 within 0.1 s"});
  WriteText(config, "conector = 1\n");
  ExpectRefusal(
      cluster,
      {{"status", "--config", config}, 2, absl::StrCat(config, ": there is no option conector")});
  ExpectRefusal(cluster, {{"status", "--config", config + ".none"}, 2, "none"});
}

}  // namespace
}  // namespace caravan
