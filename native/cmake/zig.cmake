# The library of any system on this machine, by Zig's Clang (pip install ziglang):
#
#     cmake -S native -B build/windows -G Ninja -DCMAKE_TOOLCHAIN_FILE=cmake/zig.cmake \
#         -DLIMELIGHT_TARGET=x86_64-windows-gnu
#
# A target is one of Zig's, such as aarch64-macos.11.0, x86_64-linux-gnu.2.28, aarch64-linux-gnu.2.28. Without one Zig
# would compile for the processor of this machine.
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES LIMELIGHT_TARGET)
string(REGEX MATCH "^([^-]+)-([a-z]+)" _ "${LIMELIGHT_TARGET}")
set(CMAKE_SYSTEM_PROCESSOR ${CMAKE_MATCH_1})
if(CMAKE_MATCH_2 STREQUAL "windows")
  set(CMAKE_SYSTEM_NAME Windows)
elseif(CMAKE_MATCH_2 STREQUAL "macos")
  set(CMAKE_SYSTEM_NAME Darwin)
  # CMake looks for it, and would only use it for libraries with a path of others inside.
  find_program(CMAKE_INSTALL_NAME_TOOL NAMES install_name_tool llvm-install-name-tool true REQUIRED)
else()
  set(CMAKE_SYSTEM_NAME Linux)
endif()
find_program(ZIG NAMES python-zig zig REQUIRED)
set(CMAKE_CXX_COMPILER ${ZIG} c++ -target ${LIMELIGHT_TARGET})
if(CMAKE_SYSTEM_NAME STREQUAL "Windows" AND NOT CMAKE_HOST_WIN32)
  set(CMAKE_CROSSCOMPILING_EMULATOR wine)
endif()
set(CMAKE_CXX_FLAGS_INIT -g0)
set(CMAKE_SHARED_LINKER_FLAGS_INIT -s)
