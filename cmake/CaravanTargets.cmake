# The build's whole vocabulary: caravan_library, caravan_test. Sources are listed by hand.

# What every target of ours is compiled with.
add_library(caravan_options INTERFACE)
target_include_directories(caravan_options INTERFACE ${CMAKE_SOURCE_DIR})
target_compile_options(caravan_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Wnon-virtual-dtor;-Werror>)
# The standard forbids contracting a*b+c where the source does not; determinism across call sites needs that.
target_compile_options(caravan_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off>)
# The same for CUDA: a kernel that wants a fused multiply-add says fmaf.
target_compile_options(caravan_options INTERFACE
  "$<$<COMPILE_LANGUAGE:CUDA>:--fmad=false;--Werror=all-warnings;-Xcompiler=-Wall,-Wextra,-Werror,-ffp-contract=off>")
if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  target_compile_options(caravan_options INTERFACE -Wthread-safety)
endif()
if(CARAVAN_SANITIZE)
  # GCC takes what the sanitizers put between a check and a use for a way around the check.
  target_compile_options(caravan_options INTERFACE $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
  add_compile_options(-fsanitize=${CARAVAN_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${CARAVAN_SANITIZE})
  if(CARAVAN_SANITIZE STREQUAL "thread")
    # Otherwise gRPC's library, whose locks ThreadSanitizer cannot see, runs our watched copies of
    # std::string's functions, and seems to race for its own strings.
    add_link_options(-Wl,--version-script=${CMAKE_SOURCE_DIR}/cmake/hide_symbols.map)
  endif()
endif()

# caravan_library(<folder> SRCS ... DEPS ...): the static library caravan_<folder>.
function(caravan_library name)
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS" ${ARGN})
  add_library(caravan_${name} STATIC ${ARG_SRCS})
  target_link_libraries(caravan_${name} PUBLIC caravan_options ${ARG_DEPS})
endfunction()

# caravan_test(<name> SRCS ... DEPS ... [LABELS ...] [PREFIX p]): one gtest binary; ctest sees each of
# its tests, by its name behind the prefix.
function(caravan_test name)
  cmake_parse_arguments(ARG "" "PREFIX" "SRCS;DEPS;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SRCS})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} GTest::gmock GTest::gtest GTest::gtest_main)
  # Half of the build is tests, and most of their optimization is of code that runs once.
  target_compile_options(${name} PRIVATE $<$<CONFIG:Release>:-O1>)
  target_compile_definitions(${name} PRIVATE CARAVAN_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
  gtest_discover_tests(${name} DISCOVERY_TIMEOUT 120 TEST_PREFIX "${ARG_PREFIX}"
    PROPERTIES LABELS "${ARG_LABELS}")
endfunction()
include(GoogleTest)
